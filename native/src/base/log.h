// Messages to the caller's sink. Without a sink they are dropped: the library never prints.
#pragma once

#include "fasa.h"

namespace fasa {

// fn may be NULL. It is called on whichever thread logs.
void log_sink_set(fasa_log_fn fn, void* user);

void log_message(fasa_log_level level, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace fasa
