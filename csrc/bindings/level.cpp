#include "bindings/level.h"

#include <stdexcept>
#include <utility>

namespace {

const std::vector<std::pair<std::string, rlhf::Level>> kLevels = {{"portable", rlhf::Level::kPortable},
                                                                  {"avx2", rlhf::Level::kAvx2},
                                                                  {"avx512bf16", rlhf::Level::kAvx512Bf16},
                                                                  {"amx", rlhf::Level::kAmx}};

}  // namespace

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const auto& [name, level] : kLevels) {
        if (rlhf::level_available(level)) names.push_back(name);
    }
    return names;
}

rlhf::Level level_of(const std::string& wanted) {
    for (const auto& [name, level] : kLevels) {
        if (name == wanted && rlhf::level_available(level)) return level;
    }
    throw std::invalid_argument("level is '" + wanted + "', expected one of those that levels() lists");
}
