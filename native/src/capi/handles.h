// What the opaque handles of fasa.h hold.
#pragma once

#include <memory>
#include <string>

#include "gguf/file.h"
#include "model/model.h"
#include "runtime/context.h"
#include "runtime/sampler.h"

struct fasa_gguf {
    std::shared_ptr<const fasa::gguf::File> file;
};

struct fasa_model {
    std::shared_ptr<const fasa::Model> model;
    std::string device_name;
};

struct fasa_context {
    fasa::Context context;
};

struct fasa_table {
    std::shared_ptr<const fasa::Table> table;
};

struct fasa_sampler {
    fasa::Sampler sampler;
};
