#!/bin/busybox sh
# A script that its #! line runs, with the shell's builtins only.
# @case words one "two three" $HOME
echo "$# arguments: $*"
i=0; sum=0
while [ $i -lt 100 ]; do i=$((i + 1)); sum=$((sum + i)); done
echo "$sum $(( (1 << 40) % 1000 ))"
greet() { local who=$1; echo "hello, ${who:-nobody} ${#who}"; }
greet; greet world
echo one > file; echo two >> file; while read -r line; do echo "<$line>"; done < file
case abc in a*) echo match ;; esac
set -- a b c; shift; echo "$@"; trap 'echo leaving' EXIT
printf '%05d %s %x\n' 42 text 255; [ -f file ] && [ ! -d file ] && echo "a file"
cd / && pwd; echo "${PATH%%:*} ${0##*/}"
exit 7
