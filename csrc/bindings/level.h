// Instruction sets by name.
#pragma once

#include <string>
#include <vector>

#include "isa/level.h"

std::vector<std::string> levels();                  // those that this processor can run, the fastest last
rlhf::Level level_of(const std::string& wanted);  // throws std::invalid_argument where it is not among them
