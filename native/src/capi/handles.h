// What the opaque handles of fasa.h hold.
#pragma once

#include <memory>

#include "gguf/file.h"

struct fasa_gguf {
    std::shared_ptr<const fasa::gguf::File> file;
};
