// The description of an export, manifest.json: what its model takes, and whether it can run here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "safetensors.hpp"

struct Input {
  std::string name;
  std::string dtype;  // "float32" or "uint8"
  std::vector<std::int64_t> shape;
};

struct Manifest {
  std::filesystem::path folder;
  std::string device;          // "cpu" or "cuda"
  std::vector<Input> inputs;   // in the order in which the model takes them
  std::vector<std::string> instructions;
  double tolerance = 0;        // of a check, in units of the action's scale
};

// Reads a manifest, and holds the folder's files to their hashes and this machine to what the code was made for.
// Throws Error with the way out. `torch_version` is that of this program, major and minor.
Manifest read_manifest(const std::filesystem::path& folder, const std::string& torch_version);

// Throws Error unless an array has the type and the shape of an input, and finite numbers.
void check_input(const Array& array, const Input& input);
