#Requires -RunAsAdministrator
<#
.SYNOPSIS
Installs phi-edge as a Windows service, or upgrades it.

.DESCRIPTION
Copies the folder of this script to the program folder, makes %ProgramData%\phi-edge with rights for administrators and the
service's account alone, and registers the service. It is started only if it ran before or -Start is given: a new
installation needs a model and a broker first.
#>
[CmdletBinding()]
param(
    # Where the program goes.
    [string] $ProgramFolder = (Join-Path $Env:ProgramFiles 'phi-edge'),
    # Start the service at the end.
    [switch] $Start
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$name = 'phi-edge'
$account = "NT SERVICE\$name"
$data = Join-Path $Env:ProgramData $name
# By their full paths: what lies in the current folder is not to be run as administrator.
$icacls = Join-Path $Env:SystemRoot 'System32\icacls.exe'

function Invoke-Checked([string] $program, [string[]] $arguments) {
    & $program @arguments
    if ($LASTEXITCODE -ne 0) {
        throw "$program $arguments ended with $LASTEXITCODE"
    }
}

$service = Get-Service -Name $name -ErrorAction SilentlyContinue
$ran = $null -ne $service -and $service.Status -ne 'Stopped'
if ($ran) {
    # Running answers are finished meanwhile.
    Stop-Service -Name $name
}

New-Item -ItemType Directory -Force -Path $ProgramFolder | Out-Null
Copy-Item -Path (Join-Path $PSScriptRoot '*') -Destination $ProgramFolder -Recurse -Force

# Everybody may make folders in ProgramData: one that is there already may be somebody else's.
New-Item -ItemType Directory -Force -Path $data | Out-Null
Invoke-Checked $icacls @($data, '/setowner', '*S-1-5-32-544', '/T', '/C', '/Q')
Invoke-Checked $icacls @($data, '/reset', '/T', '/C', '/Q')
Invoke-Checked $icacls @($data, '/inheritance:r', '/grant:r', '*S-1-5-18:(OI)(CI)F', '/grant:r', '*S-1-5-32-544:(OI)(CI)F', '/Q')
foreach ($folder in 'conf.d', 'rules.d', 'models', 'store', 'log') {
    New-Item -ItemType Directory -Force -Path (Join-Path $data $folder) | Out-Null
}
$config = Join-Path $data 'config.toml'
if (-not (Test-Path -Path $config)) {
    Copy-Item -Path (Join-Path $ProgramFolder 'config.toml') -Destination $config
}

# The service's account exists once the service is registered.
Invoke-Checked (Join-Path $ProgramFolder 'phi-edge.exe') @('service', 'install')
Invoke-Checked $icacls @($data, '/grant:r', "${account}:(OI)(CI)RX", '/Q')
foreach ($folder in 'store', 'log') {
    Invoke-Checked $icacls @((Join-Path $data $folder), '/grant:r', "${account}:(OI)(CI)M", '/Q')
}

if ($ran -or $Start) {
    Start-Service -Name $name
}
Write-Output "phi-edge is installed in $ProgramFolder; its configuration, state and log are in $data"
