@echo off
rem Start TET Data Service: the binary, else the zipapp, else the source in a virtual environment of its own.
rem Arguments are passed on; without any, config.txt beside this script is used.
rem Usage: run.bat [--demo ^| --config=FILE ^| any other flag; see run.bat --help]
setlocal
set "HERE=%~dp0"
set "NAME=tet-data-service"
set "TET_STARTED_AS=%~0"

set "FIRST="
if not "%~1"=="" goto start
set FIRST="--config=%HERE%config.txt"
if exist "%HERE%config.txt" goto start
copy /y "%HERE%config.example" "%HERE%config.txt" >nul
if errorlevel 1 exit /b 1
echo run.bat: made "%HERE%config.txt": put your BINANCE_API_KEY and BINANCE_SECRET_KEY into it, or set 1>&2
echo PUBLIC_DATA=true to run without keys; then start me again. run.bat --demo needs neither. 1>&2
exit /b 2

:start
set "PROGRAM="
rem Windows on arm64 runs programs for amd64, too. What is found last is taken.
set "MACHINES=amd64"
if /i "%PROCESSOR_ARCHITECTURE%"=="ARM64" set "MACHINES=amd64 arm64"
for %%m in (%MACHINES%) do (
    if exist "%HERE%dist\%NAME%-windows-%%m.exe" set "PROGRAM=%HERE%dist\%NAME%-windows-%%m.exe"
    if exist "%HERE%%NAME%-windows-%%m.exe" set "PROGRAM=%HERE%%NAME%-windows-%%m.exe"
)
if defined PROGRAM goto binary
call :find_python
if errorlevel 1 exit /b 1
if exist "%HERE%dist\%NAME%.pyz" set "PROGRAM=%HERE%dist\%NAME%.pyz"
if exist "%HERE%%NAME%.pyz" set "PROGRAM=%HERE%%NAME%.pyz"
if defined PROGRAM goto python
%FOUND% "%HERE%deploy\build.py" venv "%HERE%.venv-run" 1>&2
if errorlevel 1 exit /b 1
set FOUND="%HERE%.venv-run\Scripts\python.exe"
set "PROGRAM=%HERE%tet_data_service.py"
goto python

:binary
echo run.bat: starting "%PROGRAM%" 1>&2
"%PROGRAM%" %FIRST% %*
exit /b %errorlevel%

:python
echo run.bat: starting "%PROGRAM%" 1>&2
%FOUND% "%PROGRAM%" %FIRST% %*
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
