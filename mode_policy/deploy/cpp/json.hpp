// A reader of JSON: strict, bounded in depth, and without dependencies.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Bad input, in words for a person.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  // Throws Error with the position of what is not JSON.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }

  // Each throws Error if the value is of another kind, or lacks the key.
  double number() const;
  std::int64_t integer() const;  // a whole number from 0 to 2^53
  const std::string& string() const;
  const std::vector<Json>& array() const;
  const std::vector<std::pair<std::string, Json>>& object() const;
  const Json& at(std::string_view key) const;
  const Json* find(std::string_view key) const;  // nullptr if it is not there

 private:
  friend class Parser;

  Kind kind_ = Kind::null;
  bool boolean_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<Json> array_;
  std::vector<std::pair<std::string, Json>> object_;
};
