@echo off
rem Make tet-data-service-windows-amd64.exe and the zipapp, with their SHA256SUMS, in dist\ (or in %OUT%).
rem Needs Python 3.11 or newer (%PYTHON%, else the newest found) and nothing else.
rem Usage: build.bat [all^|binary^|zipapp]
setlocal
call :find_python
if errorlevel 1 exit /b 1
%FOUND% "%~dp0deploy\build.py" %*
exit /b %errorlevel%

:find_python
set "FOUND="
if defined PYTHON call :try "%PYTHON%"
if not defined FOUND for %%v in (3.14 3.13 3.12 3.11) do if not defined FOUND call :try py -%%v
if not defined FOUND call :try python
if not defined FOUND call :try python3
if defined FOUND exit /b 0
echo %~nx0: Python 3.11 or newer is needed; set PYTHON to where python.exe is 1>&2
exit /b 1

:try
%* -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>nul
if not errorlevel 1 set FOUND=%*
exit /b 0
