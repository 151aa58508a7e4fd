/* runcode.exe at the top of a Windows release archive: starts the CPython that lies beside it.
 *
 * What it needs is in `<its own name without .exe>.app`, as packaging/archive/runcode has it elsewhere. The command
 * line is handed on as it came, past the program's own name, so that no argument is read and quoted anew. Built by
 * .github/workflows/release.yml (cl /O2 /MT runcode.c); compiled with mingw-w64 here, never run (docs/platforms.md).
 */
#ifndef UNICODE
#define UNICODE
#define _UNICODE
#endif
#include <windows.h>
#include <stdio.h>
#include <wchar.h>

#define ROOM 32768 /* Windows' own bound of a path and of a command line */

static const wchar_t *past_program(const wchar_t *line) {
    /* The first word ends by other rules than the rest: a quote up to the next one, else at a blank. */
    int quoted = 0;
    for (; *line && (quoted || (*line != L' ' && *line != L'\t')); line++)
        if (*line == L'"') quoted = !quoted;
    while (*line == L' ' || *line == L'\t') line++;
    return line;
}

static int fail(const wchar_t *rest, const wchar_t *app) {
    fwprintf(stderr, L"runcode: missing_program: %ls is incomplete (remove it and its runcode.exe, then retry)\n", app);
    /* A hook that cannot run must block; ssh's own status for what runs remote commands. */
    if (!wcsncmp(rest, L"hook", 4)) return 2;
    if (!wcsncmp(rest, L"exec", 4) || !wcsncmp(rest, L"run", 3) || !wcsncmp(rest, L"shell", 5) || !wcsncmp(rest, L"proxy", 5))
        return 255;
    return 127;
}

int wmain(void) {
    static wchar_t self[ROOM], app[ROOM], python[ROOM], line[2 * ROOM];
    const wchar_t *rest = past_program(GetCommandLineW());
    DWORD length = GetModuleFileNameW(NULL, self, ROOM - 64);
    if (length == 0 || length >= ROOM - 64) return fail(rest, L"runcode.app");
    wcscpy(app, self);
    if (length > 4 && !_wcsicmp(app + length - 4, L".exe")) app[length - 4] = 0;
    wcscat(app, L".app");
    swprintf(python, ROOM, L"%ls\\python\\python.exe", app);
    int written = swprintf(line, ROOM, L"\"%ls\" -I -S -X \"self=%ls\" \"%ls\\lib\\runcode\\cli\\entry.py\" %ls", python, self, app, rest);
    if (written < 0) return fail(rest, app);

    STARTUPINFOW start = {0};
    start.cb = sizeof start;
    start.dwFlags = STARTF_USESTDHANDLES;
    start.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    start.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    start.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    PROCESS_INFORMATION child;
    if (!CreateProcessW(python, line, NULL, NULL, TRUE, 0, NULL, NULL, &start, &child)) return fail(rest, app);
    /* Ctrl-C goes to the whole console: Python answers it, and this waits for the answer. Said only now, since a child
     * inherits it. */
    SetConsoleCtrlHandler(NULL, TRUE);
    /* Whoever ends this ends Python with it. */
    HANDLE job = CreateJobObjectW(NULL, NULL);
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limit = {0};
    limit.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK;
    if (job && SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limit, sizeof limit))
        AssignProcessToJobObject(job, child.hProcess);
    WaitForSingleObject(child.hProcess, INFINITE);
    DWORD status = 127;
    GetExitCodeProcess(child.hProcess, &status);
    return (int)status;
}
