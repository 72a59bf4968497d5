#include "json.hpp"

#include <charconv>
#include <cmath>

namespace {

constexpr int kDeepest = 64;

const char* name(Json::Kind kind) {
  switch (kind) {
    case Json::Kind::null: return "null";
    case Json::Kind::boolean: return "a boolean";
    case Json::Kind::number: return "a number";
    case Json::Kind::string: return "a string";
    case Json::Kind::array: return "an array";
    case Json::Kind::object: return "an object";
  }
  return "unknown";
}

[[noreturn]] void unexpected(Json::Kind found, const char* needed) {
  throw Error(std::string("found ") + name(found) + " where " + needed + " was expected");
}

}  // namespace

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = this->value(0);
    space();
    if (at_ != text_.size()) fail("more after the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("no JSON: " + what + " at byte " + std::to_string(at_));
  }

  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  bool take(char c) {
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail(std::string("no '") + c + "'");
  }

  bool word(std::string_view w) {
    if (text_.substr(at_, w.size()) != w) return false;
    at_ += w.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) fail("nested too deep");
    space();
    if (at_ == text_.size()) fail("nothing");
    Json result;
    if (text_[at_] == '{') {
      result.kind_ = Json::Kind::object;
      members(result, depth);
    } else if (text_[at_] == '[') {
      result.kind_ = Json::Kind::array;
      elements(result, depth);
    } else if (text_[at_] == '"') {
      result.kind_ = Json::Kind::string;
      result.string_ = quoted();
    } else if (word("true")) {
      result.kind_ = Json::Kind::boolean;
      result.boolean_ = true;
    } else if (word("false")) {
      result.kind_ = Json::Kind::boolean;
    } else if (!word("null")) {
      result.kind_ = Json::Kind::number;
      result.number_ = number();
    }
    return result;
  }

  void members(Json& result, int depth) {
    expect('{');
    space();
    if (take('}')) return;
    do {
      space();
      std::string key = quoted();
      space();
      expect(':');
      result.object_.emplace_back(std::move(key), value(depth + 1));
      space();
    } while (take(','));
    expect('}');
  }

  void elements(Json& result, int depth) {
    expect('[');
    space();
    if (take(']')) return;
    do {
      result.array_.push_back(value(depth + 1));
      space();
    } while (take(','));
    expect(']');
  }

  double number() {
    // JSON's numbers begin with a digit or a minus sign; from_chars would also take "inf" and "nan".
    const char first = text_[at_];
    if (first != '-' && (first < '0' || first > '9')) fail("no value");
    double result = 0;
    const char* end = text_.data() + text_.size();
    const auto [stop, code] = std::from_chars(text_.data() + at_, end, result);
    if (code != std::errc() || !std::isfinite(result)) fail("no number");
    at_ = static_cast<std::size_t>(stop - text_.data());
    return result;
  }

  std::string quoted() {
    expect('"');
    std::string result;
    while (true) {
      if (at_ == text_.size()) fail("a string without end");
      const char c = text_[at_++];
      if (c == '"') return result;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c != '\\') {
        result += c;
        continue;
      }
      if (at_ == text_.size()) fail("a string without end");
      const char escape = text_[at_++];
      static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
      if (const auto i = kFrom.find(escape); i != std::string_view::npos) {
        result += kTo[i];
      } else if (escape == 'u') {
        append_utf8(result, code_point());
      } else {
        fail("an unknown escape");
      }
    }
  }

  unsigned code_point() {
    unsigned code = four_digits();
    if (code >= 0xD800 && code < 0xDC00) {  // first half of a pair
      if (!word("\\u")) fail("half of a surrogate pair");
      const unsigned low = four_digits();
      if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
      fail("half of a surrogate pair");
    }
    return code;
  }

  unsigned four_digits() {
    unsigned code = 0;
    if (text_.size() - at_ < 4) fail("a string without end");
    const char* begin = text_.data() + at_;
    const auto [stop, error] = std::from_chars(begin, begin + 4, code, 16);
    if (error != std::errc() || stop != begin + 4) fail("no hexadecimal digits");
    at_ += 4;
    return code;
  }

  static void append_utf8(std::string& text, unsigned code) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned kLead[] = {0, 0xC0, 0xE0, 0xF0};
    text += static_cast<char>(kLead[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return Parser(text).document(); }

double Json::number() const {
  if (kind_ != Kind::number) unexpected(kind_, "a number");
  return number_;
}

std::int64_t Json::integer() const {
  const double value = number();
  if (value < 0 || value > 9007199254740992.0 || value != std::floor(value)) {
    throw Error("found " + std::to_string(value) + " where a whole number was expected");
  }
  return static_cast<std::int64_t>(value);
}

const std::string& Json::string() const {
  if (kind_ != Kind::string) unexpected(kind_, "a string");
  return string_;
}

const std::vector<Json>& Json::array() const {
  if (kind_ != Kind::array) unexpected(kind_, "an array");
  return array_;
}

const std::vector<std::pair<std::string, Json>>& Json::object() const {
  if (kind_ != Kind::object) unexpected(kind_, "an object");
  return object_;
}

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : object()) {
    if (name == key) return &value;
  }
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  if (const Json* value = find(key)) return *value;
  throw Error("no key '" + std::string(key) + "'");
}
