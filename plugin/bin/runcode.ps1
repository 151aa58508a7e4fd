# runcode launcher for Windows: starts the runcode that this plugin is pinned to, and fetches it when it is not here.
#
# The same order, knobs, codes and statuses as `runcode` beside it, which says why. Written for Windows PowerShell 5.1
# and PowerShell 7; it has never been run (docs/platforms.md). The ACLs of the user's profile stand in for modes.

$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$ProgressPreference = 'SilentlyContinue'

# The same stand in runcode (tests/architecture/test_launchers.py compares them).
$DOWNLOAD_ROOT = 'https://github.com/runcode-io/runcode/releases/download'
$MAX_ARCHIVE_BYTES = 268435456
$MAX_UNPACKED_BYTES = 1073741824
$MAX_CHECKSUMS_BYTES = 65536

$words = @($args)
$word = ''
if ($words.Count -gt 0) { $word = [string]$words[0] }
$staging = $null

function Stop-Launcher([string]$code, [string]$message, [string]$resolution) {
    if ($script:staging -and [IO.Directory]::Exists($script:staging)) {
        try { [IO.Directory]::Delete($script:staging, $true) } catch { }
    }
    $status = 127
    if ($script:word -ceq 'hook') { $status = 2 }
    elseif ($script:word -ceq 'statusline') { exit 0 }
    elseif (@('exec', 'run', 'shell', 'proxy') -ccontains $script:word) { $status = 255 }
    $text = $message -replace '[^\x20-\x7e]', '?'
    $json = $false
    foreach ($argument in $script:words) {
        if ($argument -ceq '--') { break }
        if ($argument -ceq '--json') { $json = $true }
    }
    if ($json -and $status -eq 127) {
        $answer = [ordered]@{ error = $code; message = $text; resolution = $resolution }
        [Console]::Out.WriteLine((ConvertTo-Json -Compress $answer))
    } else {
        [Console]::Error.WriteLine("runcode: ${code}: $text ($resolution)")
    }
    exit $status
}

# CommandLineToArgvW reads back exactly these words: 5.1 itself loses inner quotes and empty arguments.
function Join-Arguments([object[]]$list) {
    $quoted = foreach ($one in $list) {
        $value = [string]$one
        if ($value -ne '' -and $value -notmatch '[\s"]') { $value; continue }
        '"' + (($value -replace '(\\*)"', '$1$1\"') -replace '(\\+)$', '$1$1') + '"'
    }
    return (@($quoted) -join ' ')
}

# Standard streams are inherited, so bytes pass as they are.
function Start-Program([string]$program) {
    $start = New-Object System.Diagnostics.ProcessStartInfo
    $start.FileName = $program
    $start.Arguments = Join-Arguments $script:words
    $start.UseShellExecute = $false
    try {
        $process = [System.Diagnostics.Process]::Start($start)
        $process.WaitForExit()
    } catch {
        Stop-Launcher 'io_error' "$program does not start" 'remove it, then retry'
    }
    exit $process.ExitCode
}

function Test-Link([string]$path) {
    return ([IO.File]::GetAttributes($path) -band [IO.FileAttributes]::ReparsePoint) -ne 0
}

# ---------------------------------------------------------------- what is wanted, and is it here?
$here = $PSScriptRoot
if ($env:RUNCODE_BIN) {
    if ([IO.Path]::IsPathRooted($env:RUNCODE_BIN) -and [IO.File]::Exists($env:RUNCODE_BIN) -and
        $env:RUNCODE_BIN.EndsWith('.exe', [StringComparison]::OrdinalIgnoreCase)) {
        Start-Program $env:RUNCODE_BIN
    }
    Stop-Launcher 'missing_program' "RUNCODE_BIN is $env:RUNCODE_BIN, which is not the absolute path of a program" 'correct RUNCODE_BIN, or unset it'
}

$ownVersion = ''
$versionFile = Join-Path $here 'RUNCODE_VERSION'
if ([IO.File]::Exists($versionFile)) { $ownVersion = @([IO.File]::ReadAllLines($versionFile))[0] }
$version = $ownVersion
if ($env:RUNCODE_PIN_VERSION) { $version = $env:RUNCODE_PIN_VERSION }
if (-not $version) { Stop-Launcher 'io_error' "$versionFile cannot be read" 'install the plugin again' }
if ($version -cnotmatch '\A[A-Za-z0-9_+][A-Za-z0-9._+-]*\z') {
    Stop-Launcher 'usage' "'$version' is not a release tag" 'correct RUNCODE_PIN_VERSION, or unset it'
}

$cache = $env:RUNCODE_CACHE
if (-not $cache) {
    if (-not $env:LOCALAPPDATA) { Stop-Launcher 'unsafe_path' 'there is no LOCALAPPDATA to keep runcode in' 'set RUNCODE_CACHE' }
    $cache = Join-Path $env:LOCALAPPDATA 'runcode'
}
if (-not [IO.Path]::IsPathRooted($cache)) {
    Stop-Launcher 'unsafe_path' "the cache $cache is not an absolute path" 'set RUNCODE_CACHE to one'
}

# A 32-bit PowerShell on 64-bit Windows is told the truth in the second variable.
$machine = $env:PROCESSOR_ARCHITEW6432
if (-not $machine) { $machine = $env:PROCESSOR_ARCHITECTURE }
$arch = switch ($machine) { 'AMD64' { 'amd64' } 'ARM64' { 'arm64' } default { '' } }
if (-not $arch) {
    Stop-Launcher 'unsupported_platform' "there is no runcode for this system (Windows $machine)" 'install it with pipx, or build it and set RUNCODE_BIN'
}

$bin = Join-Path $cache 'bin'
$name = "runcode-$version-windows-$arch"
$entry = Join-Path $bin "$name.exe"
function Start-Cached {
    if (-not [IO.File]::Exists($entry)) { return }
    foreach ($path in @($cache, $bin, $entry)) {
        if (Test-Link $path) { Stop-Launcher 'unsafe_path' "$path is a link" 'remove it, then retry' }
    }
    if ((New-Object IO.FileInfo $entry).Length -eq 0) { Stop-Launcher 'unsafe_path' "$entry is damaged" 'remove it, then retry' }
    Start-Program $entry
}
Start-Cached

# A runcode.exe that the person installed: not inside the working folder, the cache or this plugin.
function Test-Inside([string]$path, [string]$folder) {
    $root = [IO.Path]::GetFullPath($folder).TrimEnd('\') + '\'
    return [IO.Path]::GetFullPath($path).StartsWith($root, [StringComparison]::OrdinalIgnoreCase)
}
$work = (Get-Location -PSProvider FileSystem).ProviderPath
foreach ($folder in ([string]$env:PATH).Split(';')) {
    $folder = $folder.Trim('"')
    if ($folder -notmatch '\A([A-Za-z]:\\|\\\\)') { continue }
    $found = Join-Path $folder 'runcode.exe'
    try {
        if (-not [IO.File]::Exists($found) -or (Test-Link $found)) { continue }
        if ((Test-Inside $found $work) -or (Test-Inside $found $cache) -or (Test-Inside $found $here)) { continue }
    } catch { continue }
    Start-Program $found
}
if ($word -ceq 'statusline') { exit 0 }

# ---------------------------------------------------------------- the download
$asset = "runcode_windows_$arch.zip"
$base = $env:RUNCODE_DOWNLOAD_BASE
if (-not $base) { $base = "$DOWNLOAD_ROOT/$version" }
$base = $base.TrimEnd('/')
$uri = $null
$isAddress = [Uri]::TryCreate("$base/$asset", [UriKind]::Absolute, [ref]$uri)
if (-not $isAddress -or $base -match '[\x00-\x1f@]' -or -not (
        $uri.Scheme -eq 'https' -or ($uri.Scheme -eq 'file' -and -not $uri.IsUnc) -or ($uri.Scheme -eq 'http' -and $uri.IsLoopback))) {
    Stop-Launcher 'insecure_base' "the download address $base is neither https:// nor file:///" 'correct RUNCODE_DOWNLOAD_BASE'
}

# Returns the lower-case digest of the one line that names the asset, or nothing.
function Find-Digest([string]$file) {
    $digest = $null
    foreach ($line in [IO.File]::ReadAllLines($file)) {
        if ($line -cmatch '\A([^ #]+) [ *](.+)\z' -and $Matches[2] -ceq $asset) {
            $one = $Matches[1]
            if ($one -cnotmatch '\A[0-9a-f]{64}\z') {
                Stop-Launcher 'unverified_download' "checksums.txt has no SHA-256 of $asset" 'report it: the release is damaged'
            }
            if ($digest -and $digest -cne $one) {
                Stop-Launcher 'unverified_download' "checksums.txt names $asset twice" 'report it: the release is damaged'
            }
            $digest = $one
        }
    }
    return $digest
}

$digest = $null
$isPinned = $false
$pins = Join-Path $here 'checksums.txt'
if ($version -ceq $ownVersion -and [IO.File]::Exists($pins) -and @([IO.File]::ReadAllLines($pins) | Where-Object { $_ -and $_ -notmatch '\A#' }).Count -gt 0) {
    $isPinned = $true
    $digest = Find-Digest $pins
    if (-not $digest) {
        Stop-Launcher 'unverified_download' "the plugin's checksums.txt does not name $asset" 'this release has nothing for this system: install runcode with pipx, or set RUNCODE_BIN'
    }
}

try {
    [void][IO.Directory]::CreateDirectory($bin)
    foreach ($path in @($cache, $bin)) {
        if (Test-Link $path) { Stop-Launcher 'unsafe_path' "$path is a link" 'make it a folder of your own, or set RUNCODE_CACHE to one' }
    }
    # What a killed run left. One that still runs has its process.
    foreach ($left in [IO.Directory]::GetDirectories($bin, '.staging.*')) {
        $number = 0
        if ([int]::TryParse($left.Substring($left.LastIndexOf('.') + 1), [ref]$number) -and -not (Get-Process -Id $number -ErrorAction SilentlyContinue)) {
            try { [IO.Directory]::Delete($left, $true) } catch { }
        }
    }
    $staging = Join-Path $bin ".staging.$PID"
    [void][IO.Directory]::CreateDirectory($staging)
} catch {
    Stop-Launcher 'unsafe_path' "the cache $cache cannot be written" 'make it writable, or set RUNCODE_CACHE to a folder of your own'
}

# Each redirect is looked at before it is followed, and the bytes are counted as they come.
function Save-File([string]$name, [long]$limit) {
    $address = New-Object Uri "$base/$name"
    $target = Join-Path $staging $name
    [Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12
    $response = $null
    try {
        for ($step = 0; ; $step++) {
            $request = [Net.WebRequest]::Create($address)
            $request.Timeout = 30000
            if ($request -is [Net.HttpWebRequest]) {
                $request.AllowAutoRedirect = $false
                $request.ReadWriteTimeout = 30000
            }
            $response = $request.GetResponse()
            if (-not ($response -is [Net.HttpWebResponse]) -or [int]$response.StatusCode -lt 300) { break }
            $next = New-Object Uri $address, $response.Headers['Location']
            $response.Close()
            if ($next.Scheme -ne 'https' -or $step -ge 5) {
                Stop-Launcher 'insecure_base' 'the download address redirects to what is not https' 'correct RUNCODE_DOWNLOAD_BASE, or report it'
            }
            $address = $next
        }
        $source = $response.GetResponseStream()
        $file = [IO.File]::Create($target)
        try {
            $buffer = New-Object byte[] 65536
            $total = 0L
            while (($count = $source.Read($buffer, 0, $buffer.Length)) -gt 0) {
                $total += $count
                if ($total -gt $limit) { break }
                $file.Write($buffer, 0, $count)
            }
        } finally { $file.Close() }
    } catch [Net.WebException] {
        $answer = $_.Exception.Response
        if (($answer -is [Net.HttpWebResponse] -and [int]$answer.StatusCode -ge 400) -or $address.IsFile) {
            Stop-Launcher 'not_found' "there is no $name at $base" 'check RUNCODE_PIN_VERSION and RUNCODE_DOWNLOAD_BASE'
        }
        Stop-Launcher 'network' "$name cannot be fetched from $base" 'check the connection, then retry'
    } catch {
        Stop-Launcher 'network' "$name cannot be fetched from $base" 'check the connection, then retry'
    } finally { if ($response) { $response.Close() } }
    if ($total -gt $limit) {
        Stop-Launcher 'unverified_download' "$name at $base is larger than $limit bytes" 'report it: the release is damaged'
    }
    return $target
}

if (-not $isPinned) {
    $digest = Find-Digest (Save-File 'checksums.txt' $MAX_CHECKSUMS_BYTES)
    if (-not $digest) {
        Stop-Launcher 'unverified_download' "checksums.txt at $base does not name $asset" 'this release has nothing for this system: install runcode with pipx, or set RUNCODE_BIN'
    }
}
$archive = Save-File $asset $MAX_ARCHIVE_BYTES
$hasher = [Security.Cryptography.SHA256]::Create()
$stream = [IO.File]::OpenRead($archive)
try { $actual = ([BitConverter]::ToString($hasher.ComputeHash($stream)) -replace '-', '').ToLowerInvariant() } finally { $stream.Close() }
if ($actual -cne $digest) {
    Stop-Launcher 'unverified_download' "$asset from $base is not what was published (its SHA-256 differs)" 'retry; if it stays so, do not use it, and report it'
}

# ---------------------------------------------------------------- unpacking
$tree = Join-Path $staging 'tree'
[void][IO.Directory]::CreateDirectory($tree)
Add-Type -AssemblyName System.IO.Compression
Add-Type -AssemblyName System.IO.Compression.FileSystem
try { $zip = [IO.Compression.ZipFile]::OpenRead($archive) } catch {
    Stop-Launcher 'unverified_download' "$asset from $base is no zip archive" 'report it: the release is damaged'
}
$wrong = $null
try {
    $total = 0L
    foreach ($item in $zip.Entries) {
        $total += $item.Length
        # A name is made of plain words with single slashes, and no word is `..`, a device's, or ends in a dot.
        if ($item.FullName -cnotmatch '\A(runcode\.exe|runcode\.app(/[A-Za-z0-9_.+@,=~-]+)*/?)\z' -or
            $item.FullName -match '(\A|/)\.\.?(/|\z)|\.(/|\z)' -or
            $item.FullName -match '(\A|/)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.[^/]*)?(/|\z)') { $wrong = 'a name that has no place in it' }
        # The upper half holds a Unix mode: of a regular file, a folder, or none at all.
        $kind = ($item.ExternalAttributes -shr 28) -band 15
        if (@(0, 4, 8) -notcontains $kind) { $wrong = 'a link or a device' }
        if ($total -gt $MAX_UNPACKED_BYTES) { $wrong = 'too much' }
        if ($wrong) { break }
        if ($item.FullName.EndsWith('/')) { continue }
        $target = Join-Path $tree ($item.FullName -replace '/', '\')
        [void][IO.Directory]::CreateDirectory([IO.Path]::GetDirectoryName($target))
        [IO.Compression.ZipFileExtensions]::ExtractToFile($item, $target, $false)
    }
} catch {
    Stop-Launcher 'io_error' "$asset cannot be unpacked in $cache" 'free some space, then retry'
} finally { $zip.Dispose() }
$program = Join-Path $tree 'runcode.exe'
if (-not $wrong -and (-not [IO.File]::Exists($program) -or (New-Object IO.FileInfo $program).Length -eq 0)) { $wrong = 'no runcode.exe at its top' }
if ($wrong) { Stop-Launcher 'unverified_download' "$asset from $base holds $wrong" 'do not use it, and report it' }

# ---------------------------------------------------------------- publishing
# First the application, then the entry, each by one rename: who sees the entry sees all of it.
$application = Join-Path $tree 'runcode.app'
$final = Join-Path $bin "$name.app"
$mark = '.archive-sha256'
if ([IO.Directory]::Exists($application)) {
    [IO.File]::WriteAllText((Join-Path $application $mark), "$digest`n")
    for ($attempt = 0; ; $attempt++) {
        try { [IO.Directory]::Move($application, $final); break } catch { }
        $there = ''
        try { $there = [IO.File]::ReadAllText((Join-Path $final $mark)).Trim() } catch { }
        if ($there -ceq $digest) { break }
        if ($attempt -ge 20) { Stop-Launcher 'io_error' "$final is in the way" 'remove it, then retry' }
        try { [IO.Directory]::Move($final, (Join-Path $staging "old.$attempt")) } catch { }
    }
}
try { [IO.File]::Move($program, $entry) } catch {
    if (-not [IO.File]::Exists($entry)) { Stop-Launcher 'io_error' "$cache cannot be written" 'retry' }
}
try { [IO.Directory]::Delete($staging, $true) } catch { }
Start-Cached
Stop-Launcher 'io_error' "$entry is gone again" 'retry'
