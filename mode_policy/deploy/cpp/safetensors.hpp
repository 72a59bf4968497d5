// A reader of safetensors files: eight bytes of length, a JSON header, then the tensors' bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

struct Array {
  std::string dtype;  // "F32" or "U8"
  std::vector<std::int64_t> shape;
  std::vector<unsigned char> bytes;  // row after row, little-endian
};

// Every tensor of a file by name. Throws Error if the file is cut off, its header lies about it, or a tensor is
// of another type.
std::map<std::string, Array> read_safetensors(const std::filesystem::path& file);
