# Completes nfsd3d in zsh.
_nfsd3d() {
    local -a found keys words_
    found=(${(f)"$(nfsd3d completion --line "$LBUFFER" 2>/dev/null)"})
    keys=(${(M)found:#*=})
    words_=(${found:#*=})
    if (( $#found )); then
        compadd -S '' -a keys
        compadd -a words_
        return 0
    else
        compset -P '*='
        _files
    fi
}
compdef _nfsd3d nfsd3d
