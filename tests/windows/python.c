/* python.exe: hands over to the Python DLL beside it. */
#include <stdio.h>
#include <wchar.h>
#include <windows.h>

int wmain(int argc, wchar_t **argv) {
    static wchar_t path[32768];
    GetModuleFileNameW(NULL, path, 32768);
    wcscpy(wcsrchr(path, L'\\') + 1, L"python" DIGITS L".dll");
    HMODULE dll = LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
    if (!dll) {
        fwprintf(stderr, L"no Python DLL: %lu\n", GetLastError());
        return 103;
    }
    int (*run)(int, wchar_t **) = (int (*)(int, wchar_t **)) GetProcAddress(dll, "Py_Main");
    return run(argc, argv);
}
