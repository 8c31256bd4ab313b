// What follows may use the instruction set MASK2FORMER_TARGET, until end.inl. Nothing is included
// in between: a function of another header would run where the set is missing.
#if defined(MASK2FORMER_TARGET)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(MASK2FORMER_TARGET))), apply_to = function)
#else
#define MASK2FORMER_PRAGMA(text) _Pragma(#text)
#define MASK2FORMER_USE(names) MASK2FORMER_PRAGMA(GCC target(names))
#pragma GCC push_options
MASK2FORMER_USE(MASK2FORMER_TARGET)  // a pragma of GCC does not expand macros
#undef MASK2FORMER_USE
#undef MASK2FORMER_PRAGMA
#endif
#endif
