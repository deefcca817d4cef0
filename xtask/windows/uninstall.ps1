#Requires -RunAsAdministrator
<#
.SYNOPSIS
Removes the service and the program. Configuration, state and log stay, unless -Purge is given.
#>
[CmdletBinding()]
param(
    # Where the program is.
    [string] $ProgramFolder = (Join-Path $Env:ProgramFiles 'phi-edge'),
    # Remove configuration, models, accepted requests and the log, too.
    [switch] $Purge
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$name = 'phi-edge'
$data = Join-Path $Env:ProgramData $name

if (Get-Service -Name $name -ErrorAction SilentlyContinue) {
    & (Join-Path $ProgramFolder 'phi-edge.exe') service uninstall
    if ($LASTEXITCODE -ne 0) {
        throw "the service can't be removed"
    }
}
if (Test-Path -Path $ProgramFolder) {
    Remove-Item -Path $ProgramFolder -Recurse -Force
}
if ($Purge -and (Test-Path -Path $data)) {
    Remove-Item -Path $data -Recurse -Force
}
Write-Output "phi-edge is removed$(if (-not $Purge) { "; $data stays" })"
