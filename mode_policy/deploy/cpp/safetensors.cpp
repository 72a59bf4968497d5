#include "safetensors.hpp"

#include <bit>
#include <fstream>

#include "json.hpp"

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian, as this machine must be");

namespace {

constexpr std::uint64_t kLargestHeader = 100'000'000;  // as in the reference implementation

std::uint64_t element_size(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "U8") return 1;
  throw Error("its type is " + dtype + "; observations are F32 or U8");
}

// Bytes that a tensor of this shape takes; throws if it cannot be held by a file of `available` bytes.
std::uint64_t bytes_of(const std::vector<std::int64_t>& shape, std::uint64_t element, std::uint64_t available) {
  std::uint64_t bytes = element;
  for (const std::int64_t side : shape) {
    const auto factor = static_cast<std::uint64_t>(side);
    if (factor != 0 && bytes > available / factor) throw Error("its shape is larger than the file");
    bytes *= factor;
  }
  return bytes;
}

Array read_array(const Json& entry, std::ifstream& stream, std::uint64_t start, std::uint64_t available) {
  Array array{entry.at("dtype").string(), {}, {}};
  for (const Json& side : entry.at("shape").array()) array.shape.push_back(side.integer());
  const auto& offsets = entry.at("data_offsets").array();
  if (offsets.size() != 2) throw Error("its offsets are not two");
  const auto begin = static_cast<std::uint64_t>(offsets[0].integer());
  const auto end = static_cast<std::uint64_t>(offsets[1].integer());
  if (begin > end || end > available) throw Error("its offsets lie outside of the file");
  if (end - begin != bytes_of(array.shape, element_size(array.dtype), available)) {
    throw Error("its offsets do not fit its shape");
  }
  array.bytes.resize(end - begin);
  stream.seekg(static_cast<std::streamoff>(start + begin));
  stream.read(reinterpret_cast<char*>(array.bytes.data()), static_cast<std::streamsize>(array.bytes.size()));
  if (!stream) throw Error("it cannot be read");
  return array;
}

}  // namespace

std::map<std::string, Array> read_safetensors(const std::filesystem::path& file) {
  std::error_code problem;
  const std::uint64_t size = std::filesystem::file_size(file, problem);
  std::ifstream stream(file, std::ios::binary);
  if (problem || !stream) throw Error(file.string() + " cannot be read");
  std::uint64_t length = 0;
  stream.read(reinterpret_cast<char*>(&length), sizeof length);
  if (!stream || length > kLargestHeader || length > size - sizeof length) {
    throw Error(file.string() + " is no safetensors file, or cut off");
  }
  std::string header(length, '\0');
  stream.read(header.data(), static_cast<std::streamsize>(length));
  if (!stream) throw Error(file.string() + " cannot be read");
  const std::uint64_t start = sizeof length + length;

  std::map<std::string, Array> arrays;
  try {
    const Json description = Json::parse(header);
    for (const auto& [name, entry] : description.object()) {
      if (name == "__metadata__") continue;
      try {
        arrays[name] = read_array(entry, stream, start, size - start);
      } catch (const Error& error) {
        throw Error("'" + name + "': " + error.what());
      }
    }
  } catch (const Error& error) {
    throw Error(file.string() + ": " + error.what());
  }
  return arrays;
}
