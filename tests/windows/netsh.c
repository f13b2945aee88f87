/* netsh that notes how it was called in the file that BPBROKER_NETSH names: Wine's own does nothing. */
#include <stdio.h>
#include <windows.h>

int wmain(void) {
    const wchar_t *path = _wgetenv(L"BPBROKER_NETSH");
    FILE *file = path ? _wfopen(path, L"a, ccs=UTF-8") : NULL;
    if (file) {
        fwprintf(file, L"%ls\n", GetCommandLineW());
        fclose(file);
    }
    return 0;
}
