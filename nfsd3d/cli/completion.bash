# Completes nfsd3d in bash. It splits words at = and :, so what stands before the last of them is taken off again.
_nfsd3d() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" word found start
    word="${line##*[[:space:]]}"
    start="${word%"${word##*[=:]}"}"
    COMPREPLY=()
    for found in $(nfsd3d completion --line "$line" 2>/dev/null); do
        [[ $found == *= || $found == *=\[* ]] || found+=" "
        COMPREPLY+=("${found#"$start"}")
    done
}
complete -o nospace -o default -F _nfsd3d nfsd3d
