// SHA-256 (FIPS 180-4) of a file.
#pragma once

#include <filesystem>
#include <string>

// Lower-case hexadecimal digits. Throws Error if the file cannot be read.
std::string sha256(const std::filesystem::path& file);
