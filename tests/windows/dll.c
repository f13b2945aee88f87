/* A DLL without a C library: python3.dll, of forwards alone, and with PRNG bcryptprimitives.dll, which Rust's library needs. */
int DllMain(void *a, unsigned b, void *c) { return 1; }

#ifdef PRNG
unsigned char SystemFunction036(void *, unsigned long);
__declspec(dllexport) int ProcessPrng(unsigned char *p, unsigned long long n) { return SystemFunction036(p, (unsigned long) n); }
#endif
