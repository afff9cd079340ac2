// Instruction sets by name, as Python has them.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "../cpu/level.h"

constexpr std::pair<const char*, rlhf::Level> kLevels[] = {{"portable", rlhf::Level::kPortable},
                                                           {"avx2", rlhf::Level::kAvx2},
                                                           {"avx512bf16", rlhf::Level::kAvx512Bf16}};

inline rlhf::Level level_of(const std::string& wanted) {
    for (const auto& [name, level] : kLevels) {
        if (name == wanted && rlhf::level_available(level)) return level;
    }
    throw std::invalid_argument("level is '" + wanted + "', expected one of those that levels() lists");
}
