@echo off
rem Windows: hands everything on to runcode.ps1 beside it. Never run where it was written (docs/platforms.md).
setlocal DisableDelayedExpansion
powershell.exe -NoLogo -NoProfile -ExecutionPolicy Bypass -File "%~dp0runcode.ps1" %*
exit /b %ERRORLEVEL%
