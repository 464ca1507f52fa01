# A long POSIX shell script: the same output from dash, bash and busybox sh, natively and under Hermix.
# Nothing is printed that may differ between two runs: process ids, times.
set -u
export LC_ALL=C
section() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }
failures=0
work=$(mktemp -d) || exit 9
cd "$work" || exit 9

section "pipelines"
printf '%s\n' pear apple fig apple date fig apple > fruits
sort fruits | uniq -c | sort -rn | sed 's/^ *//'
cat fruits | while read -r name; do echo "$name" | tr a-z A-Z; done | head -n 3
seq 1 1000 | grep 7 | wc -l | tr -d ' '
seq 1 20000 | sed -n '$p'
yes | head -n 100000 | wc -c | tr -d ' '
false | true; echo "status $?"
true | false; echo "status $?"
! true; echo "status $?"
echo one two three | { read -r a b; echo "$b then $a"; }
seq 5 | (read -r first; echo "first $first"; cat | tail -n 1)
i=0; while [ $i -lt 20 ]; do i=$((i + 1)); echo "line $i" | cat | cat | cat > last; done; cat last
seq 3 | xargs -n 1 echo item
seq 12 | xargs -n 5 | tr ' ' +
find . -type f | sort

section "here-documents"
name=world
cat <<END
hello $name, $(echo "from a command"), $((6 * 7))
  indented \$name
END
cat <<'END'
no $expansion here, no `commands`
END
cat <<-END
	tabs are
		taken away
END
cat <<A; cat <<B
first
A
second
B
while read -r word number; do echo "$number:$word"; done <<END
alpha 1
beta 2
END
wc -l <<END | tr -d ' '
$(seq 500)
END
f() { cat <<END
inside a function: $1
END
}
f argument

section "command substitution"
echo "[$(echo nested "$(echo "$(echo deep)")")]"
echo "$(printf 'trailing newlines\n\n\n')|"
x=$(seq 3); echo $x; echo "$x"
y=`echo old \`echo style\``; echo "$y"
echo "status of $(exit 5)"
z=$(exit 6); echo "status $?"
count=$(ls | wc -l); echo $((count))
long=$(seq 1 5000); echo ${#long}
echo "$(cat fruits | head -n 1 & wait)"

section "expansion"
path=/usr/local/lib/libsomething.so.1.2.3
echo "${path##*/} ${path%/*} ${path%%.*} ${path#/usr}"
unset nothing; echo "${nothing:-default} ${nothing-unset} ${name:+set}"
: "${nothing:=assigned}"; echo "$nothing"
(unset gone; : "${gone:?is missing}") 2>/dev/null; echo "status $?"
set -- 'a b' c 'd  e'; echo $# "$2"; for arg in "$@"; do echo "<$arg>"; done
for arg in $*; do printf '%s,' "$arg"; done; echo
shift 2; echo "$# $1"
IFS=:; set -- $(echo one:two:three); echo "$2"; unset IFS
touch glob1 glob2 glob3 'with space'
echo glob* 'glob*' "g"lob[13] nothing*
set -f; echo glob*; set +f
echo ~root >/dev/null && echo tilde
a=5; echo $((a + 3 * 2)) $((a << 3 | 1)) $((a > 3 && a < 9)) $((0x1f)) $((010)) $((a %= 3)) $a
echo $((-7 / 2)) $((-7 % 3)) $((1 ? 2 : 3))
case $path in */lib/*) echo "in lib" ;; *) echo elsewhere ;; esac
case x in [a-w]) echo 1 ;; [!a-w]) echo 2 ;; esac

section "functions and variables"
outer=1
change() { outer=2; local inner=3; echo "$outer $inner $#"; return 7; }
change p q; echo "status $? outer $outer"
factorial() { if [ "$1" -le 1 ]; then echo 1; else echo $(($1 * $(factorial $(($1 - 1))))); fi; }
factorial 12
var=temp sh -c 'echo "child sees $var"'; echo "${var:-parent does not}"
export exported=yes; sh -c 'echo "$exported"'
readonly fixed=1; (fixed=2) 2>/dev/null || echo "read only"
recurse() { [ "$1" -eq 0 ] || recurse $(($1 - 1)); }; recurse 200; echo recursed
eval 'echo evaluated $((1 + 1))'
. /dev/stdin <<END
sourced() { echo "sourced function"; }
END
sourced
getopts_test() {
    OPTIND=1
    while getopts ab:c opt; do echo "$opt ${OPTARG:-}"; done
    shift $((OPTIND - 1)); echo "rest $*"
}
getopts_test -a -b value -c remaining words

section "redirection"
echo out > file; echo more >> file; cat < file
{ echo to stdout; echo to stderr >&2; } > both 2>&1; cat both
ls missing 2> errors; [ -s errors ] && echo "an error was written"
exec 3> three; echo "through descriptor 3" >&3; exec 3>&-; cat three
exec 4< fruits; read -r one <&4; read -r two <&4; exec 4<&-; echo "$one $two"
(echo a; echo b >&2) 2>&1 | sort -r
echo overwritten > file; set -C; (echo again > file) 2>/dev/null || echo "not clobbered"; echo forced >| file; set +C; cat file
cat fruits > copy 2>/dev/null && cmp fruits copy && echo same
: > empty; [ -s empty ] || echo "empty file"
while read -r line; do echo "$line"; done < fruits | head -n 2
{ cat; } < file
echo "to fd 5" 5>&1 >&5

section "subshells"
(cd /; var=inner; echo "$PWD"); [ "$PWD" = "$work" ] && echo "back"
(exit 3); echo "status $?"
( (echo nested; exit 4); echo "inner $?"; exit 5 ); echo "outer $?"
(trap 'echo "subshell ends"' EXIT; echo "in the subshell")
{ echo group; exit_status=8; }; echo "$exit_status"
(umask 077; touch private); ls -l private | cut -c 1-10
a=1; (a=2; (a=3; echo $a); echo $a); echo $a

section "background jobs"
sleep 0.05 & wait $!; echo "waited $?"
(exit 12) & wait $!; echo "status $?"
for i in 1 2 3; do (sleep 0.0$i; echo "job $i" >> jobs_out) & done; wait; sort jobs_out
(sleep 5) & pid=$!; kill $pid; wait $pid 2>/dev/null; echo "killed $?"
sh -c 'trap "echo caught > caught; exit 33" TERM; touch ready; while :; do sleep 0.01; done' & pid=$!
while [ ! -e ready ]; do sleep 0.01; done; kill -TERM $pid; wait $pid; echo "status $? $(cat caught)"
{ sleep 0.02; echo late; } & echo early; wait
kill -0 $$ && echo "alive"
kill -0 999999 2>/dev/null || echo "no such process"
seq 100 > numbers & wait; wc -l < numbers | tr -d ' '
mkfifo pipe; (echo through a fifo > pipe) & cat pipe; wait
mkfifo back; (read -r question < pipe; echo "answer to $question" > back) & echo question > pipe; cat back; wait

section "traps and signals"
trap 'echo "got USR1"' USR1; kill -USR1 $$; echo after
trap '' USR2; kill -USR2 $$; echo "ignored"
trap - USR1 USR2
sh -c 'trap "echo exit trap" EXIT; exit 2'; echo "status $?"
sh -c 'trap "echo term; exit 44" TERM; kill -TERM $$; sleep 1'; echo "status $?"
{ sh -c 'kill -KILL $$'; } 2>/dev/null; echo "status $?"
{ sh -c 'kill -HUP $$'; } 2>/dev/null; echo "status $?"
sh -c 'trap "" PIPE; yes 2>/dev/null | head -n 1'
(sh -c 'sleep 0.01; kill -USR1 $PPID'; :) & trap 'usr1=1' USR1; wait; trap - USR1

section "conditions"
[ -d . ] && [ -f fruits ] && [ ! -e none ] && [ -r fruits ] && echo files
[ 3 -lt 10 ] && [ abc != abd ] && [ -n x ] && [ -z "" ] && echo comparisons
ln -s fruits link; [ -L link ] && [ link -ef fruits ] && echo links
touch -d '2001-01-01' old; [ fruits -nt old ] && echo newer
if false; then echo no; elif true; then echo elif; else echo no; fi
until [ "${n:=0}" -ge 3 ]; do n=$((n + 1)); done; echo "$n"
for i in 1 2 3 4 5; do [ $i = 2 ] && continue; [ $i = 4 ] && break; echo "$i"; done
for i in a b; do for j in 1 2 3; do [ $j = 2 ] && continue 2; echo "$i$j"; done; done
true && false || echo "or"
set -e; (false; echo "not reached") || echo "left by -e"; set +e

section "files"
mkdir -p d/e/f; echo deep > d/e/f/g; cp -r d d2; diff -r d d2 && echo "same trees"
mv d2 d3; rm -r d; ls -d d*; ln d3/e/f/g hard; ls -l hard | awk '{ print $2 }'
chmod 640 hard; stat -c %a hard; du -a d3 | wc -l | tr -d ' '
tar cf - d3 | (mkdir x; cd x; tar xf -); cat x/d3/e/f/g
for i in $(seq 50); do echo "$i" > "n$i"; done; cat n* | awk '{ s += $1 } END { print s }'; rm n*
dd if=/dev/zero bs=1024 count=64 2>/dev/null | wc -c | tr -d ' '
head -c 10000 /dev/urandom | wc -c | tr -d ' '
echo test > "name with  spaces"; cat "name with  spaces"; rm name*
printf 'b 2\na 1\nc 3\n' | sort -k2 -n | cut -d' ' -f1 | paste -s -d, -
printf 'x,y\n1,2\n' | awk -F, '{ print $2 }' | sed -e 's/^/> /'
comm -12 fruits fruits 2>/dev/null | sort -u | tr '\n' ' '; echo
split -l 3 fruits part_; cat part_* | cmp - fruits && echo rejoined
basename /a/b/c.txt .txt; dirname /a/b/c.txt; expr 6 \* 7; expr abc : 'a\(.\)c'
date -u -d @86400 +%Y-%m-%d; env -i A=1 sh -c 'echo $A'; nice -n 0 echo nice

section "many processes"
i=0; while [ $i -lt 60 ]; do /bin/true; i=$((i + 1)); done; echo $i
i=0; while [ $i -lt 30 ]; do (exit $i); [ $? = $i ] || fail "exit $i"; i=$((i + 1)); done; echo $i
for i in 1 2 3 4 5 6 7 8; do (for j in 1 2 3 4; do echo "$i.$j"; done) & done | sort | tail -n 1; wait
echo "depth $(sh -c 'echo $(sh -c "echo \$(sh -c \"echo \\\$((1+2))\")")')"
sum=0; for n in $(seq 40); do sum=$((sum + $(echo "$n"))); done; echo "sum $sum"

section "small programs"
primes=""
candidate=2
while [ $candidate -le 60 ]; do
    is_prime=1
    for prime in $primes; do
        [ $((candidate % prime)) -eq 0 ] && { is_prime=0; break; }
    done
    [ $is_prime = 1 ] && primes="$primes $candidate"
    candidate=$((candidate + 1))
done
echo "primes:$primes"
gcd() { a=$1 b=$2; while [ "$b" -ne 0 ]; do t=$((a % b)); a=$b; b=$t; done; echo "$a"; }
echo "gcd $(gcd 1071 462) $(gcd 17 5)"
hanoi() {
    [ "$1" -eq 0 ] && return
    hanoi $(($1 - 1)) "$2" "$4" "$3"
    moves=$((moves + 1)); [ $moves -le 3 ] && echo "$2 -> $3"
    set -- "$1" "$4" "$3" "$2"
    hanoi $(($1 - 1)) "$2" "$3" "$4"
}
moves=0; hanoi 6 left right middle; echo "$moves moves"
reverse() {
    rest=$1 reversed=
    while [ -n "$rest" ]; do
        reversed=${rest%"${rest#?}"}$reversed
        rest=${rest#?}
    done
    echo "$reversed"
}
reverse "a man a plan"
calculate() { # reverse Polish notation
    stack=""
    for token in "$@"; do
        case $token in
            [0-9]*) stack="$token $stack" ;;
            *)
                set -- $stack; y=$1 x=$2; shift 2; stack="$*"
                case $token in
                    +) stack="$((x + y)) $stack" ;;
                    -) stack="$((x - y)) $stack" ;;
                    x) stack="$((x * y)) $stack" ;;
                esac ;;
        esac
    done
    echo "$stack"
}
calculate 5 1 2 + 4 x + 3 -
number=2026 roman=""
for pair in 1000:M 900:CM 500:D 400:CD 100:C 90:XC 50:L 40:XL 10:X 9:IX 5:V 4:IV 1:I; do
    while [ $number -ge ${pair%:*} ]; do roman=$roman${pair#*:}; number=$((number - ${pair%:*})); done
done
echo "$roman"

section "workers"
# Three workers, each with a pipe of its own, and one who adds up what they have done.
work_off() { while read -r task; do echo "$task $((task * task))"; done < "tasks.$1" > "done.$1"; }
for worker in 1 2 3; do mkfifo "tasks.$worker"; work_off $worker & done
exec 3> tasks.1 4> tasks.2 5> tasks.3
for task in $(seq 30); do
    case $((task % 3)) in 0) echo "$task" >&3 ;; 1) echo "$task" >&4 ;; 2) echo "$task" >&5 ;; esac
done
exec 3>&- 4>&- 5>&-
wait
cat done.1 done.2 done.3 | sort -n | awk '{ n++; s += $2 } END { print n " tasks, sum " s }'
# A lock that mkdir takes: no increment is lost.
echo 0 > counter
increment() {
    i=0
    while [ $i -lt 5 ]; do
        until mkdir lock 2>/dev/null; do sleep 0.001; done
        read -r value < counter; echo $((value + 1)) > counter
        rmdir lock
        i=$((i + 1))
    done
}
for worker in 1 2 3 4; do increment & done; wait
echo "counter $(cat counter)"
# A server that answers over two pipes until it is told to stop.
mkfifo tasks results
(while read -r request; do
    case $request in stop) exit 21 ;; *) echo "<$request>" ;; esac
done < tasks > results) &
server=$!
exec 6> tasks 7< results
for request in one "two words" three; do echo "$request" >&6; read -r answer <&7; echo "$answer"; done
echo stop >&6; wait $server; echo "server ended with $?"
exec 6>&- 7<&-
statuses=""
for status in 3 1 2; do (exit $status) & statuses="$statuses $!:$status"; done
for entry in $statuses; do wait "${entry%:*}"; [ $? = "${entry#*:}" ] || fail "$entry"; done
echo "each status once"
sh -c 'trap "echo parent told; exit 0" USR1; (kill -USR1 $$); while :; do sleep 0.01; done'
sh -c 'trap "echo cleaned up" EXIT; trap "exit 9" INT; kill -INT $$; echo not reached'; echo "status $?"
(trap 'rm -f held; echo "held is gone"' EXIT; : > held; [ -e held ] && echo "held is there"); ls held 2>/dev/null

section "reports"
cat > sales <<END
north 2024 120
south 2024 80
north 2025 150
east 2025 60
south 2025 95
END
awk '{ total[$1] += $3 } END { for (region in total) print region, total[region] }' sales | sort
sort -k1,1 sales > sorted; printf 'east E\nnorth N\nsouth S\n' | join - sorted | cut -d' ' -f2,4 | head -n 3
while read -r region year amount; do
    [ "$year" = 2025 ] || continue
    printf '%-8s|%5d|%s\n' "$region" "$amount" "$(printf '%*s' $((amount / 10)) '' | tr ' ' '#')"
done < sales
sed -e '/2024/d' -e 's/\([a-z]*\) \([0-9]*\) \(.*\)/\3 by \1/' sales | nl -w 2 -s '. '
paste -d' ' - - - < fruits | tail -n 1; od -An -tx1 fruits | head -n 1 | tr -d ' '
find . -name 'done.?' -exec sh -c 'for file; do echo "${file#./}"; done' sh {} + | sort
tr -cs 'a-z' '\n' < sales | sort -u | tr '\n' ' ' | sed 's/^ //'; echo

section "limits and exec"
(ulimit -n 64; ulimit -n); (ulimit -c 0; ulimit -c)
(exec sh -c 'echo replaced "$0" "$1"' zero one); echo "status $?"
(exec /nonexistent) 2>/dev/null; echo "status $?"
touch noexec; (./noexec) 2>/dev/null; echo "status $?"
printf '#!/bin/sh\necho "script $1 of $#"\n' > script; chmod +x script; ./script a b
printf '#!/bin/sed -nf\n2p\n' > sedscript; chmod +x sedscript; ./sedscript fruits
printf 'echo without a line\n' > plain; chmod +x plain; ./plain
command -v sh >/dev/null && type cd >/dev/null && echo found
not_a_command_at_all 2>/dev/null; echo "status $?"
hash -r; PATH=$work:$PATH; script only

section "end"
[ $failures = 0 ] && echo "no failures"
cd /; rm -rf "$work"
exit 17
