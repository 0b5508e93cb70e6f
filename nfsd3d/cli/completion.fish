# Completes nfsd3d in fish.
function __nfsd3d
    set -l found (nfsd3d completion --line (commandline -cp | string collect) 2>/dev/null)
    if test (count $found) -gt 0; and test -n "$found[1]"
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c nfsd3d -f -a '(__nfsd3d)'
