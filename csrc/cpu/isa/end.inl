// The end of what begin.inl began.
#if defined(MASK2FORMER_TARGET)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
