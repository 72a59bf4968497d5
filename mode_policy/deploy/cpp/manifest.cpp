#include "manifest.hpp"

#include <sys/utsname.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "json.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kFormat = 1;

std::string read_text(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw Error(file.string() + " cannot be read; is " + file.parent_path().string() + " an export?");
  return {std::istreambuf_iterator<char>(stream), {}};
}

// What the kernel says that the processor can do.
std::set<std::string> processor_flags() {
  std::ifstream stream("/proc/cpuinfo");
  std::string line;
  while (std::getline(stream, line)) {
    if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

void check_machine(const Json& made_for, const std::string& torch_version) {
  utsname here{};
  uname(&here);
  const std::string& system = made_for.at("system").string();
  const std::string& processor = made_for.at("processor").string();
  if (system != here.sysname || processor != here.machine) {
    throw Error("it was made for " + system + " on " + processor + ", this is " + here.sysname + " on " +
                here.machine + "; export the checkpoint on this machine");
  }
  if (made_for.at("torch").string() != torch_version) {
    throw Error("it was made for torch " + made_for.at("torch").string() + ", this program was built with " +
                torch_version + "; export the checkpoint with that version, or build this program with the other");
  }
  const std::set<std::string> flags = processor_flags();
  for (const Json& needed : made_for.at("instruction_sets").array()) {
    if (!flags.contains(needed.string())) {
      throw Error("it was made for a processor with " + made_for.at("cpu_capability").string() +
                  "; this one lacks " + needed.string() + "; export the checkpoint on this machine");
    }
  }
}

void check_seal(const fs::path& folder) {
  const fs::path file = folder / "manifest.json";
  const std::string hash = sha256(file);
  if (read_text(folder / "manifest.sha256").substr(0, hash.size()) != hash) {
    throw Error(file.string() + " is corrupt: its SHA-256 differs from manifest.sha256; copy the folder again");
  }
}

void check_files(const fs::path& folder, const Json& hashes) {
  for (const auto& [name, hash] : hashes.object()) {
    const fs::path file = folder / name;
    if (fs::path(name).filename() != name) throw Error("it names '" + name + "', which lies outside of the folder");
    if (!fs::is_regular_file(file)) throw Error(file.string() + " is missing; copy the whole folder");
    if (sha256(file) != hash.string()) {
      throw Error(file.string() + " is corrupt: its SHA-256 differs from the manifest's; copy the folder again");
    }
  }
  for (const char* needed : {"model.pt2", "check.safetensors"}) {
    if (!hashes.find(needed)) throw Error(std::string("it lists no hash of ") + needed);
  }
}

std::string text(const std::vector<std::int64_t>& shape) {
  std::string result = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + ")";
}

Manifest parse(const fs::path& folder, const std::string& torch_version) {
  check_seal(folder);
  const Json data = Json::parse(read_text(folder / "manifest.json"));
  if (data.at("format").integer() > kFormat) {
    throw Error("it has format " + std::to_string(data.at("format").integer()) + ", this program reads up to " +
                std::to_string(kFormat) + "; build a newer one");
  }
  if (data.at("target").string() != "aoti") {
    throw Error("its target is " + data.at("target").string() + "; this program runs exports of target=aoti");
  }
  check_files(folder, data.at("sha256"));
  check_machine(data.at("made_for"), torch_version);
  Manifest manifest{folder, data.at("device").string(), {}, {}, 0};
  for (const Json& input : data.at("inputs").array()) {
    manifest.inputs.push_back({input.at("name").string(), input.at("dtype").string(), {}});
    for (const Json& side : input.at("shape").array()) manifest.inputs.back().shape.push_back(side.integer());
  }
  if (const Json& known = data.at("instructions"); !known.is_null()) {
    for (const Json& one : known.at("instructions").array()) manifest.instructions.push_back(one.string());
  }
  manifest.tolerance = data.at("verification").at("tolerance").number();
  return manifest;
}

}  // namespace

Manifest read_manifest(const fs::path& folder, const std::string& torch_version) {
  try {
    return parse(folder, torch_version);
  } catch (const Error& error) {
    throw Error(folder.string() + ": " + error.what());
  }
}

void check_input(const Array& array, const Input& input) {
  const std::string dtype = array.dtype == "F32" ? "float32" : "uint8";
  if (dtype != input.dtype || array.shape != input.shape) {
    throw Error("'" + input.name + "' is " + dtype + " of shape " + text(array.shape) + "; the policy takes " +
                input.dtype + " of shape " + text(input.shape));
  }
  if (dtype != "float32") return;
  for (std::size_t i = 0; i < array.bytes.size(); i += sizeof(float)) {
    float value;
    std::memcpy(&value, array.bytes.data() + i, sizeof value);
    if (!std::isfinite(value)) throw Error("'" + input.name + "' is not finite");
  }
}
