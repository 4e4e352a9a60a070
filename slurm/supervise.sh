# shellcheck shell=bash
# supervise COMMAND...: run a command, pass it the signals that ask for a checkpoint, and return its exit code.

supervise() {
  local child='' code asked=''
  trap 'asked=1; [[ -z $child ]] || kill -USR1 "$child"' USR1
  trap 'asked=1; [[ -z $child ]] || kill -TERM "$child"' TERM
  "$@" &
  child=$!
  while true; do
    wait "$child"
    code=$?
    # A signal ends `wait`, not the command.
    [[ -n $asked ]] || break
    asked=''
  done
  trap - USR1 TERM
  return "$code"
}
