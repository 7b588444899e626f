#pragma once
#include <stdint.h>
#ifndef __aarch64__ /* half.h has these on Arm only; mlx-rs needs them everywhere */
#define HAS_FLOAT16
#define HAS_BFLOAT16
#ifdef __cplusplus
#include "mlx/types/half_types.h"
using float16_t = mlx::core::float16_t;
using bfloat16_t = mlx::core::bfloat16_t;
#else
typedef uint16_t float16_t; /* replaced in the bindings */
typedef uint16_t bfloat16_t;
#endif
#endif
#ifdef __cplusplus
#if __has_include(<format>)
#include <format>
#else /* gcc 12: enough for the plain {} of mlx/c/private/io.h */
#include <sstream>
#include <string>
#include <string_view>
namespace std {
template <class... A>
string format(string_view f, const A&... args) {
  ostringstream out;
  auto put = [&](const auto& arg) {
    auto at = f.find("{}");
    if (at == string_view::npos) return;
    out << f.substr(0, at) << arg;
    f.remove_prefix(at + 2);
  };
  (put(args), ...);
  out << f;
  return out.str();
}
} // namespace std
#endif
#endif
