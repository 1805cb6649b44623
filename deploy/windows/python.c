/* python.exe for a folder that holds python311.dll: hands its arguments to the interpreter. */
#include <stdio.h>
#include <windows.h>

typedef int (*python_main)(int, wchar_t **);

int wmain(int argc, wchar_t **argv) {
    HMODULE library = LoadLibraryW(L"python311.dll");
    if (!library) {
        fprintf(stderr, "python311.dll cannot be loaded: error %lu\n", GetLastError());
        return 1;
    }
    return ((python_main)GetProcAddress(library, "Py_Main"))(argc, argv);
}
