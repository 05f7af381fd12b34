// Sizes that the kernels are compiled with, and that Python lays out memory by.
#pragma once

#include <cstdint>

namespace greenroom {

extern "C" {  // structures/matrices.py
inline constexpr int kGroup = 32;        // inputs that share a scale in kQ8, kQ4, kMxfp4 and kBlockMxfp4
inline constexpr int kBlock = 16;        // outputs per block in kQ8, kQ4 and from kQ4_0 to kIq4Xs
inline constexpr int kDecoded = 16;      // codes of the other formats that are decoded at a time, and share a scale
inline constexpr int kCodedInputs = 64;  // of a block in kCodedBFloat16
inline constexpr int64_t kMostCodedInputs = 32768;  // of its matrices
inline constexpr int kMostParts = 2;     // matrices that an expert's first one may be stored as
inline constexpr int kCacheBlock = 16;   // tokens per block of keys in the cache
inline constexpr int kMostProjections = 6;  // matrices that a recurrent mixer projects its rows by
inline constexpr int64_t kStateLanes = 16;  // columns of a recurrent state are padded to a multiple of this
}  // extern "C"

}  // namespace greenroom
