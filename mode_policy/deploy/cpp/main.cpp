// Runs an export of the target aoti without Python: an observation in, an action chunk out.
//
//   mode_act EXPORT                        acts on the observation that was recorded when it was written, and
//                                          compares the actions with those of the policy itself
//   mode_act EXPORT OBSERVATION.safetensors [--instruction TEXT] [--seed N]
//
// OBSERVATION holds a tensor for each feature key of the manifest's inputs; it may also hold "instruction" (an
// embedding), "noise", "prefix" and "prefix_weights". Instructions are chosen by their text from those that the
// policy knows, noise is drawn from the seed, and there is no prefix otherwise.
//
// Prints {"shape": …, "actions": […], "milliseconds": …} and, for the recorded observation, "error". Exit codes:
// 0 success, 1 the actions differ from the recorded ones, 2 bad input.

#include <torch/cuda.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <optional>

#include "json.hpp"
#include "manifest.hpp"
#include "safetensors.hpp"

namespace {

struct Arguments {
  std::string folder;
  std::optional<std::string> observation, instruction;
  std::uint64_t seed = 0;
};

Arguments parse(int count, char** values) {
  Arguments arguments;
  std::vector<std::string> places;
  for (int i = 1; i < count; ++i) {
    const std::string word = values[i];
    if (word != "--instruction" && word != "--seed") {
      places.push_back(word);
      continue;
    }
    if (++i == count) throw Error(word + " needs a value");
    if (word == "--instruction") {
      arguments.instruction = values[i];
    } else {
      const char* end = values[i] + std::strlen(values[i]);
      const auto [stop, code] = std::from_chars(values[i], end, arguments.seed);
      if (code != std::errc() || stop != end) throw Error(std::string("--seed ") + values[i] + " is no number");
    }
  }
  if (places.empty() || places.size() > 2) {
    throw Error("usage: mode_act EXPORT [OBSERVATION.safetensors] [--instruction TEXT] [--seed N]");
  }
  arguments.folder = places[0];
  if (places.size() == 2) arguments.observation = places[1];
  return arguments;
}

torch::Tensor tensor(const Array& array) {
  const auto type = array.dtype == "F32" ? torch::kFloat32 : torch::kUInt8;
  torch::Tensor result = torch::empty(array.shape, type);
  if (!array.bytes.empty()) std::memcpy(result.data_ptr(), array.bytes.data(), array.bytes.size());
  return result;
}

// The embedding of a known instruction, for every sample of the batch.
torch::Tensor embedding(const Manifest& manifest, const Input& input, const std::optional<std::string>& text) {
  std::string known;
  for (std::size_t row = 0; row < manifest.instructions.size(); ++row) {
    const std::string& candidate = manifest.instructions[row];
    known += (row ? ", \"" : "\"") + candidate + "\"";
    if (text ? candidate == *text : manifest.instructions.size() == 1) {
      const auto tensors = read_safetensors(manifest.folder / "instructions.safetensors");
      const auto table = tensors.find("embeddings");
      if (table == tensors.end()) throw Error("instructions.safetensors holds no 'embeddings'");
      const torch::Tensor rows = tensor(table->second);
      if (rows.dim() != 2 || input.shape.size() != 2 || rows.size(0) <= static_cast<std::int64_t>(row) || rows.size(1) != input.shape[1]) {
        throw Error("instructions.safetensors does not fit the manifest");
      }
      return rows[static_cast<std::int64_t>(row)].expand(input.shape).contiguous();
    }
  }
  throw Error((text ? "unknown instruction \"" + *text + "\"" : "the policy needs --instruction") +
              "; known: " + known);
}

std::vector<torch::Tensor> inputs(const Manifest& manifest, const std::map<std::string, Array>& given,
                                  const Arguments& arguments) {
  std::vector<torch::Tensor> result;
  for (const Input& input : manifest.inputs) {
    const auto found = given.find(input.name);
    if (found != given.end()) {
      check_input(found->second, input);
      result.push_back(tensor(found->second));
    } else if (input.name == "instruction") {
      result.push_back(embedding(manifest, input, arguments.instruction));
    } else if (input.name == "noise") {
      torch::manual_seed(arguments.seed);
      result.push_back(torch::randn(input.shape));
    } else if (input.name == "prefix" || input.name == "prefix_weights") {
      result.push_back(torch::zeros(input.shape));
    } else {
      throw Error(*arguments.observation + " holds no '" + input.name + "', which the policy needs");
    }
  }
  return result;
}

const Array& recorded(const std::map<std::string, Array>& arrays, const char* name) {
  const auto found = arrays.find(name);
  if (found == arrays.end()) throw Error(std::string("check.safetensors holds no '") + name + "'");
  return found->second;
}

int run(const Arguments& arguments) {
  const std::string version = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
  const Manifest manifest = read_manifest(arguments.folder, version);
  if (manifest.device == "cuda" && !torch::cuda::is_available()) {
    throw Error(arguments.folder + " was made for a GPU, and there is none; export the checkpoint with device=cpu");
  }
  const torch::Device device(manifest.device);
  const auto given = read_safetensors(arguments.observation.value_or(
      (manifest.folder / "check.safetensors").string()));
  std::vector<torch::Tensor> values = inputs(manifest, given, arguments);
  for (torch::Tensor& value : values) value = value.to(device);

  const torch::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader model((manifest.folder / "model.pt2").string());
  model.run(values);  // the first time is slow
  const auto start = std::chrono::steady_clock::now();
  const torch::Tensor actions = model.run(values).at(0).cpu().contiguous();  // waits for the device
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;

  std::printf("{\"shape\": [%lld, %lld, %lld], \"actions\": [", static_cast<long long>(actions.size(0)),
              static_cast<long long>(actions.size(1)), static_cast<long long>(actions.size(2)));
  const float* number = actions.data_ptr<float>();
  for (std::int64_t i = 0; i < actions.numel(); ++i) std::printf(i ? ", %.9g" : "%.9g", number[i]);
  std::printf("], \"milliseconds\": %.3f", took.count());
  bool differs = false;
  if (!arguments.observation) {
    const torch::Tensor expected = tensor(recorded(given, "action")), scale = tensor(recorded(given, "scale"));
    const double error = ((actions - expected) / scale).abs().max().item<double>();
    differs = !(error <= manifest.tolerance);
    std::printf(", \"error\": %.3g", error);
  }
  std::printf("}\n");
  if (differs) std::cerr << "error: the actions differ from the recorded ones; export on this machine\n";
  return differs ? 1 : 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run(parse(count, values));
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "error: torch: " << error.what() << "\n";
    return 2;
  }
}
