# Completes nfsd3d in zsh.
_nfsd3d() {
    local -a found keys others
    found=(${(f)"$(nfsd3d completion --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    keys=(${(M)found:#*=})
    others=(${found:#*=})
    if (( $#found )); then
        compadd -S '' -a keys
        compadd -a others
        return 0
    else
        compset -P '*='
        _files
    fi
}
compdef _nfsd3d nfsd3d
