//! What the surveyed programs are made to do. Each line or script runs in a folder that holds `t`, a
//! short text; `$TRACE` stands for strace.

/// A command that is traced as it is: program and arguments, in the shell's notation.
pub(crate) const COMMANDS: &[&str] = &[
    "/bin/cat t",
    "/usr/bin/mawk '{print $1}' t",
    "/usr/bin/bzip2 -kf t",
    "/usr/bin/diff t /etc/passwd",
    "/usr/bin/file /bin/ls",
    "/usr/bin/wc t",
    "/usr/bin/head t",
    "/usr/bin/tr a b <t",
    "/usr/bin/id",
    "/usr/bin/du /etc",
    "/bin/df",
    "/bin/mkdir -p d",
    "/bin/ln -sf a b",
    "/usr/bin/md5sum t",
    "/usr/bin/sha256sum t",
    "/usr/bin/od t",
    "/usr/bin/seq 1000",
    "/bin/uname -a",
    "/bin/busybox ls -la /",
    "/bin/busybox find /etc -name passwd",
    "/usr/bin/openssl speed -seconds 1 -bytes 16 md5",
    "/usr/bin/objdump -d /bin/true",
    "/usr/bin/nproc",
    "/usr/bin/env",
    "/usr/bin/ps aux",
    "/usr/bin/free",
    "/usr/bin/getent passwd root",
    "/usr/bin/whoami",
    "/bin/hostname",
];

/// Programs that need a script to do what they are for. Calls that they make in other programs do not count.
pub(crate) const SCRIPTS: &[(&str, &str)] = &[
    (
        "/bin/ls",
        "$TRACE ls -laR /usr/share/doc/bash; $TRACE ls -Z --color=always -i --sort=time /dev",
    ),
    (
        "/usr/bin/sort",
        "seq 200000 >big; $TRACE sort -R -S 1M --parallel=2 -T . big -o out; $TRACE sort -m -u t t; $TRACE sort -c t; \
         $TRACE sort --compress-program=gzip -S 1M big -o out",
    ),
    (
        "/usr/bin/grep",
        "$TRACE grep -rn --color=always b . /etc/ssl; $TRACE grep -P '(a|b)+$' t; $TRACE grep -c -f t t",
    ),
    (
        "/usr/bin/sed",
        "cp t s; $TRACE sed -i.bak -e 's/a/b/g;w written' s; $TRACE sed -n '1!G;h;$p' t; $TRACE sed -s 1e\\ date t",
    ),
    (
        "/usr/bin/gawk",
        r#"$TRACE gawk '{ n[$1]++; print > "out" } END { "date" | getline d; close("date"); system("true");
           print strftime(), rand(), length(n); fflush(); print "x" | "cat"; print ENVIRON["HOME"] }' t"#,
    ),
    (
        "/bin/tar",
        "mkdir d; ln -s t d/l; mkfifo d/f; ln t d/h; $TRACE tar czf t.tgz d t; $TRACE tar xzpf t.tgz -C d; $TRACE tar tvf t.tgz; \
         $TRACE tar --sparse --xattrs -cf s.tar d; $TRACE tar rf s.tar t; $TRACE tar --diff -f s.tar",
    ),
    (
        "/usr/bin/gzip",
        "$TRACE gzip -kf t; $TRACE gzip -t t.gz; $TRACE gzip -dfk t.gz; $TRACE gzip -l t.gz; $TRACE gzip <t",
    ),
    (
        "/usr/bin/xz",
        "$TRACE xz -kf -T2 t; $TRACE xz -t t.xz; $TRACE xz -dfk t.xz; $TRACE xz -l t.xz; $TRACE xz -9 <t",
    ),
    (
        "/usr/bin/find",
        "$TRACE find /etc -name passwd -newer t -size +1 -exec echo {} +; touch gone; $TRACE find . -user root -ls -printf '%p %t' \
         -name gone -delete; $TRACE find -L . -samefile t -execdir true {} ';' -print0",
    ),
    (
        "/bin/cp",
        "mkdir d; ln -s t l; mkfifo f; $TRACE cp -a t l f d; $TRACE cp -r --preserve=all d e; $TRACE cp --reflink=auto t x; \
         $TRACE cp --sparse=always t y; $TRACE cp -lf t z; $TRACE cp -sf $PWD/t w; $TRACE cp -b t x; $TRACE cp -n t x",
    ),
    (
        "/bin/mv",
        "cp t t2; mkdir d /dev/shm/hx; $TRACE mv t2 t3; $TRACE mv -b t3 d; $TRACE mv d /dev/shm/hx; $TRACE mv /dev/shm/hx h; rm -rf /dev/shm/hx",
    ),
    (
        "/bin/rm",
        "mkdir -p d/e; touch d/e/f x; $TRACE rm -rf d; $TRACE rm -f none; $TRACE rm -i x </dev/null; $TRACE rm x",
    ),
    (
        "/usr/bin/touch",
        "$TRACE touch x; $TRACE touch -d yesterday x; $TRACE touch -r t x; $TRACE touch -h -c none",
    ),
    (
        "/usr/bin/date",
        "$TRACE date; TZ=Asia/Tokyo $TRACE date -R; $TRACE date -r t; $TRACE date -d 'next friday'; $TRACE date --utc +%s.%N",
    ),
    ("/usr/bin/stat", "$TRACE stat t; $TRACE stat -f /; $TRACE stat -L -c %N /proc/self/exe"),
    (
        "/usr/bin/tail",
        "$TRACE tail t; timeout 1 $TRACE tail -f t & sleep 0.4; echo x >>t; wait; $TRACE tail -n +2 -q t t; $TRACE tail -c 3 <t",
    ),
    ("/usr/bin/bc", "echo 'scale=50; 4*a(1)' | $TRACE bc -l"),
    ("/usr/bin/dc", "echo '2 200 ^ p' >d; $TRACE dc d; $TRACE dc -e '[hello]P' -e '!date'"),
    (
        "/usr/bin/jq",
        r#"echo '{"a":[1,2]}' >j; $TRACE jq '.a|map(.+1)|@json, now, input_filename, (now|strftime("%Y"))' j; $TRACE jq --slurpfile x j -n '$x, env.HOME'"#,
    ),
    (
        "/bin/busybox",
        r#"$TRACE busybox sh -c 'echo hi; cat t | grep b >out; for f in *; do test -f $f; done; cd /; ls -l; (exit 3); wait; kill -0 $$; umask 22;
           sleep 0.1 & wait; read x <t; trap "" INT; ulimit -n; ps; tar cf - t | gzip | md5sum; vi --help; date; id; mkdir d; rm -r d; head t'"#,
    ),
    (
        "/usr/bin/lua5.4",
        r#"cat >l.lua <<'END'
        local f = assert(io.open("x", "w+")); f:write("a\n"); f:seek("set"); f:read("l"); f:setvbuf("full"); f:close()
        for line in io.lines("t") do assert(line) end
        os.rename("x", "y"); os.remove("y"); os.execute("true"); os.getenv("HOME"); os.tmpname()
        local p = io.popen("date"); p:read("a"); p:close(); os.time(); os.clock(); os.date(); collectgarbage()
        pcall(require, "none"); os.setlocale("C"); io.tmpfile():close()
END
        $TRACE lua5.4 l.lua; echo 'print(1)' | $TRACE lua5.4 -"#,
    ),
    (
        "/usr/bin/perl",
        r#"cat >p.pl <<'END'
        use strict; use POSIX; use Socket; use IO::Select; use Time::HiRes; use File::Temp; use File::Find; use Fcntl ":flock";
        open my $f, "+>", "x"; print $f "a"; flock $f, LOCK_EX; truncate $f, 0; close $f; rename "x", "y"; chmod 0600, "y"; utime 1, 2, "y";
        link "y", "z"; symlink "y", "s"; readlink "s"; unlink "y", "z", "s"; mkdir "d"; rmdir "d"; opendir my $d, "."; my @l = readdir $d;
        my $o = `date`; my $p = fork; exit 3 if !$p; waitpid $p, 0; system "true"; pipe my $r, my $w; local $SIG{ALRM} = sub {}; alarm 1; alarm 0;
        socketpair my $a, my $b, AF_UNIX, SOCK_STREAM, 0; socket my $s, PF_INET, SOCK_STREAM, 0; bind $s, sockaddr_in(0, INADDR_LOOPBACK);
        listen $s, 5; my ($port) = sockaddr_in(getsockname $s); socket my $c, PF_INET, SOCK_STREAM, 0; connect $c, sockaddr_in($port, INADDR_LOOPBACK);
        accept my $n, $s; send $n, "x", 0; recv $c, my $x, 1, 0; IO::Select->new($c)->can_read(0.01); Time::HiRes::usleep 1000; my @g = getpwuid $<;
        POSIX::uname(); find(sub {}, "."); my $t = File::Temp->new; kill 0, $$; sleep 0; my @times = times; umask 022; getppid; POSIX::setsid();
END
        $TRACE perl p.pl"#,
    ),
    (
        "/usr/bin/python3",
        r#"cat >p.py <<'END'
import asyncio, fcntl, glob, hashlib, json, mmap, multiprocessing, os, resource, select, shutil, signal, socket, sqlite3, ssl, subprocess
import tempfile, threading, time, urllib.request, zlib
threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
with tempfile.TemporaryDirectory() as d:
    p = os.path.join(d, "f"); open(p, "w").write("x" * 9999); shutil.copy2(p, p + "2"); os.rename(p + "2", p + "3"); os.chmod(p, 0o600)
    f = open(p, "r+b"); m = mmap.mmap(f.fileno(), 0); m[0:1] = b"y"; m.flush(); fcntl.flock(f, fcntl.LOCK_EX); os.fsync(f.fileno()); f.truncate(5)
    os.symlink(p, p + "s"); os.link(p, p + "l"); list(os.walk(d)); os.stat(p); os.utime(p); glob.glob(d + "/*"); os.statvfs(d)
subprocess.run(["true"]); subprocess.run("echo hi | cat", shell=True, capture_output=True); os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
if (pid := os.fork()) == 0: os._exit(0)
os.waitpid(pid, 0); multiprocessing.get_context("fork").Pool(2).map(abs, [1]); signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.05)
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    r, w = await asyncio.open_connection(*server.sockets[0].getsockname()[:2]); await r.read(); w.close(); server.close()
    await (await asyncio.create_subprocess_exec("true")).wait()
asyncio.run(main())
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); u.sendto(b"x", u.getsockname()); u.recvfrom(9); select.select([u], [], [], 0)
a, b = socket.socketpair(); a.sendall(b"x"); b.recv(1); socket.getaddrinfo("localhost", 80); p = select.poll(); p.register(a); p.poll(0)
db = sqlite3.connect("p.db"); db.execute("create table t(a)"); db.execute("insert into t values(1)"); db.commit(); ssl.create_default_context()
resource.getrusage(0); resource.getrlimit(7); os.urandom(9); os.getloadavg(); os.sched_getaffinity(0); os.nice(0); os.getgroups(); os.pipe(); os.umask(0o22); os.uname(); os.times()
END
        $TRACE python3 p.py; timeout 3 $TRACE python3 -m http.server -b 127.0.0.1 27110 &
        until curl -sf -o /dev/null http://127.0.0.1:27110/t; do sleep 0.2; done; wait"#,
    ),
    (
        "/usr/bin/openssl",
        "$TRACE openssl version -a; $TRACE openssl genrsa -out k 2048; $TRACE openssl req -x509 -new -key k -subj /CN=a -out c; $TRACE openssl enc -aes-256-cbc \
         -pbkdf2 -k x -in t -out e; $TRACE openssl dgst -sha256 t; $TRACE openssl rand -hex 9; timeout 3 $TRACE openssl s_server -accept 27111 -key k -cert c -www & \
         sleep 1; curl -sk -o /dev/null https://127.0.0.1:27111/; echo | timeout 2 $TRACE openssl s_client -connect 127.0.0.1:27111; wait",
    ),
    // Rust.
    (
        "/usr/bin/rg",
        "$TRACE rg -n --color=always b . /etc/ssl; $TRACE rg -c -f t t; $TRACE rg --files --hidden /etc; $TRACE rg --mmap -j4 root /etc; \
         gzip -k t; $TRACE rg -z b t.gz; $TRACE rg b <t",
    ),
    (
        "/usr/bin/fdfind",
        "$TRACE fdfind -HI -e conf . /etc; $TRACE fdfind -x echo {} ';' '^t$' .; $TRACE fdfind -l . .; $TRACE fdfind -S +1k -t l -o root . /etc",
    ),
    (
        "/usr/bin/batcat",
        "$TRACE batcat --color=always --paging=never t /etc/passwd; $TRACE batcat --list-languages; $TRACE batcat --paging=always t; \
         $TRACE batcat - <t; $TRACE batcat --diagnostic",
    ),
    (
        "/usr/bin/hyperfine",
        "$TRACE hyperfine -N --runs 3 --export-json o.json true; $TRACE hyperfine --warmup 1 --runs 2 'sleep 0.01' 'cat t'",
    ),
    (
        "/usr/bin/exa",
        "$TRACE exa -laR --git /usr/share/doc/bash; $TRACE exa -T --color=always /etc/ssl; $TRACE exa -l@ --extended .; $TRACE exa -lghHimSU /dev",
    ),
    // Go.
    (
        "/usr/bin/gron",
        r#"echo '{"a":[1,2,{"b":null}]}' >j; $TRACE gron j; $TRACE gron <j >g; $TRACE gron -u g; $TRACE gron http://127.0.0.1:1/"#,
    ),
    (
        "/usr/bin/gofmt",
        r#"printf 'package main\nfunc main(){println( 1 )}\n' >m.go; $TRACE gofmt m.go; $TRACE gofmt -d m.go; $TRACE gofmt -w -s m.go; $TRACE gofmt -l ."#,
    ),
    (
        "/usr/bin/restic",
        "export RESTIC_PASSWORD=x RESTIC_CACHE_DIR=$PWD/c; mkdir d r; seq 100000 >d/n; ln -s n d/l; ln d/n d/h; $TRACE restic init -r repo; \
         $TRACE restic -r repo backup d; echo more >>d/n; $TRACE restic -r repo backup d; $TRACE restic -r repo snapshots; $TRACE restic -r repo check; \
         $TRACE restic -r repo restore latest -t r; $TRACE restic -r repo forget --keep-last 1 --prune; $TRACE restic -r repo stats",
    ),
    (
        "/usr/bin/rclone",
        r#"
        mkdir d; seq 100000 >d/n; cp t d; export RCLONE_CONFIG=$PWD/rclone.conf
        $TRACE rclone sync d e; $TRACE rclone check d e; $TRACE rclone lsl e; $TRACE rclone md5sum e; $TRACE rclone move e f; $TRACE rclone size f
        $TRACE rclone serve http --addr 127.0.0.1:27121 f &
        for n in 1 2 3 4 5 6 7 8 9; do sleep 0.5; curl -sf http://127.0.0.1:27121/t && break; done
        $TRACE rclone copy --http-url http://127.0.0.1:27121 :http: g
        pkill -TERM -P $!
        wait
        "#,
    ),
    (
        "/usr/bin/prometheus-node-exporter",
        r#"
        $TRACE prometheus-node-exporter --web.listen-address=127.0.0.1:27122 &
        for n in 1 2 3 4 5 6 7 8 9; do sleep 0.5; curl -sf http://127.0.0.1:27122/metrics >m && break; done
        curl -s http://127.0.0.1:27122/; curl -s --compressed http://127.0.0.1:27122/metrics >m
        pkill -TERM -P $!
        wait
        "#,
    ),
    (
        "/usr/bin/caddy",
        r#"
        mkdir d; seq 100000 >d/n; cp t d; export HOME=$PWD
        $TRACE caddy file-server --root d --browse --listen 127.0.0.1:27123 &
        for n in 1 2 3 4 5 6 7 8 9; do sleep 0.5; curl -sf http://127.0.0.1:27123/t && break; done
        curl -s http://127.0.0.1:27123/; curl -s --compressed http://127.0.0.1:27123/n >n; curl -s -r 5-9 http://127.0.0.1:27123/n
        pkill -TERM -P $!
        wait
        "#,
    ),
    (
        "/bin/dash",
        r#"$TRACE dash -c 'echo hi >x; cat <t | grep b; for f in *; do test -r $f; done; (cd /; exit 3); x=$(date); sleep 0.1 & wait $!; trap "echo t" EXIT USR1; kill -USR1 $$;
           umask 22; ulimit -n; read y <t; exec 3<t 4>&1; times; set -m; true & fg; [ t -nt x ]; : >>x; hash; type ls; cat <<E
here
E'; echo 'echo $0' | $TRACE dash -s"#,
    ),
    (
        "/bin/bash",
        r#"$TRACE bash -c 'for i in 1 2; do echo $i; done >x; cat <(echo a) | grep a; a=(1 2); coproc cat; kill %1; (cd /; exit 3); x=$(<t); sleep 0.1 & wait -n;
           trap "echo t" EXIT USR1; kill -USR1 $$; umask 22; ulimit -a; read -t 1 y <t; exec 3<t 4>&1; times; [[ t -nt x ]]; printf "%(%F)T"; mapfile m <t; compgen -u; echo ~root;
           exec {fd}<>x; set -m; true & fg; shopt -s globstar; echo **; echo >/dev/tcp/127.0.0.1/1; cat <<<here; history; time true'; echo 'echo $0' | $TRACE bash --norc -i"#,
    ),
    (
        "/usr/bin/node",
        r#"cat >n.js <<'END'
const fs = require("fs"), http = require("http"), cp = require("child_process"), os = require("os"), net = require("net"), dns = require("dns"), zlib = require("zlib");
fs.writeFileSync("x", "a"); fs.appendFileSync("x", "b"); fs.readFileSync("x"); fs.statSync("x"); fs.renameSync("x", "y"); fs.copyFileSync("y", "z"); fs.symlinkSync("y", "s"); fs.readlinkSync("s");
fs.mkdirSync("d"); fs.readdirSync("."); fs.rmdirSync("d"); fs.chmodSync("y", 0o600); fs.truncateSync("y", 0); fs.utimesSync("y", 1, 2); fs.unlinkSync("z"); fs.accessSync("y"); fs.mkdtempSync("m");
cp.execSync("echo hi"); cp.spawnSync("true"); os.cpus(); os.userInfo(); os.networkInterfaces(); os.loadavg(); zlib.gzipSync("x"); require("crypto").randomBytes(9); dns.lookup("localhost", () => {});
const w = fs.watch("."); setTimeout(() => w.close(), 50); fs.promises.readFile("t");
const s = http.createServer((q, r) => r.end("x")).listen(0, "127.0.0.1", () => http.get({ port: s.address().port, agent: false }, r => { r.resume(); r.on("end", () => s.close()); }));
const { Worker } = require("worker_threads"); new Worker("1", { eval: true }); const u = require("dgram").createSocket("udp4"); u.send("x", 9, "127.0.0.1", () => u.close());
process.on("SIGUSR2", () => {}); process.kill(process.pid, "SIGUSR2"); net.createServer().listen("./n.sock", function () { this.close(); });
END
        $TRACE node n.js; echo 'console.log(1)' | $TRACE node -"#,
    ),
    (
        "/usr/bin/git",
        r#"export GIT_CONFIG_GLOBAL=$PWD/gc HOME=$PWD; $TRACE git config --global user.email a@b; $TRACE git config --global user.name a; $TRACE git init r; cd r; T="strace -f -A -o ../log";
           cp ../t a; seq 5000 >b; ln -s a l; $T git add .; $T git commit -m one; echo x >>a; $T git diff; $T git commit -am two; $T git log -p --stat; $T git checkout -b n; $T git mv a c; $T git commit -am 3;
           $T git checkout -; $T git merge n; $T git stash; $T git gc; $T git fsck; $T git repack -ad; $T git tag v; $T git status; $T git grep x; $T git blame c; $T git reset --hard HEAD~1; $T git clean -fd;
           $T git clone . ../copy; $T git archive HEAD >/dev/null; $T git rebase n; $T git worktree add ../w; $T git push ../copy HEAD:refs/heads/p; $T git fetch ../copy"#,
    ),
    (
        "/usr/bin/curl",
        r#"python3 -m http.server -b 127.0.0.1 27112 >/dev/null 2>&1 & s=$!; until curl -sf -o /dev/null http://127.0.0.1:27112/t; do sleep 0.2; done
           $TRACE curl -s http://127.0.0.1:27112/t; $TRACE curl -sO --compressed http://localhost:27112/t; $TRACE curl -sI -Z http://127.0.0.1:27112/t http://127.0.0.1:27112/; $TRACE curl -s -d @t http://127.0.0.1:27112/
           $TRACE curl -s -C 3 -o t http://127.0.0.1:27112/t; $TRACE curl -s file://$PWD/t; $TRACE curl -s -c jar -b jar --limit-rate 10k http://127.0.0.1:27112/t; $TRACE curl -s http://127.0.0.1:1/; kill $s; wait"#,
    ),
    (
        "/usr/bin/gdb",
        "printf 'int g; int main(void) { for (int i = 0; i < 3; i++) g += i; return 0; }' >g.c; gcc -g g.c -o g; $TRACE gdb -nx -batch -ex 'break main' -ex run -ex next \
         -ex 'watch g' -ex continue -ex bt -ex 'info threads' -ex 'shell true' -ex 'gcore core' -ex 'python print(1)' -ex kill ./g; $TRACE gdb -nx -batch -ex 'disassemble main' ./g",
    ),
    (
        "/usr/bin/make",
        r#"printf 'all: a b
a: t
	cp t a
b:
	@echo $(shell date) >b; sleep 0.1
clean:
	rm -f a b
.PHONY: clean
-include none
$(file >w,x)
' >Makefile; $TRACE make -j2; $TRACE make -B -O -j2; $TRACE make clean; $TRACE make -n -p"#,
    ),
    (
        "/usr/bin/gpg",
        "mkdir -m 700 g; export GNUPGHOME=$PWD/g; gpgconf --launch gpg-agent; $TRACE gpg --batch --passphrase '' --quick-gen-key a@b; $TRACE gpg --batch -s t; $TRACE gpg --verify t.gpg; $TRACE gpg --batch --trust-model always \
         -r a@b -e -o e t; $TRACE gpg --batch -d e; $TRACE gpg -k; $TRACE gpg --export -a; $TRACE gpg --print-md sha256 t; gpgconf --kill all",
    ),
    (
        "/usr/bin/ssh",
        "ssh-keygen -q -N '' -f k; $TRACE ssh -G localhost; $TRACE ssh -i k -o BatchMode=yes -o StrictHostKeyChecking=no -p 1 127.0.0.1 true; $TRACE ssh -o ProxyCommand='cat t' -i k h true",
    ),
    (
        "/usr/bin/vim.basic",
        "export HOME=$PWD; $TRACE vim.basic -es -u NONE -i v -c 'e t' -c '%s/a/b/' -c 'w! x' -c '%!sort' -c 'r !date' -c 'split y' -c 'wa' -c 'set undofile' -c 'w' -c 'mks s' -c 'qa!'",
    ),
    (
        "/usr/bin/cmake",
        r#"printf 'cmake_minimum_required(VERSION 3.0)
project(p C)
add_executable(p p.c)
configure_file(t t.out)
file(GLOB f *)
execute_process(COMMAND date)
install(TARGETS p)
' >CMakeLists.txt
           echo 'int main(void) { return 0; }' >p.c; $TRACE cmake -S . -B b; $TRACE cmake --build b; $TRACE cmake --install b --prefix i; $TRACE cmake -E tar czf t.tgz t; $TRACE cmake -E copy t u; $TRACE cmake -E sha256sum t"#,
    ),
    (
        "/sbin/ldconfig",
        "$TRACE ldconfig -p; $TRACE ldconfig -n -v $PWD; mkdir -p r/etc r/lib; $TRACE ldconfig -r $PWD/r",
    ),
];

/// Where programs have the modules that they load by computed names, which `--also` would say.
pub(crate) const MODULES: &[(&str, &[&str])] = &[
    ("/usr/bin/python3", &["/usr/lib/python3.11/lib-dynload"]),
    (
        "/usr/bin/perl",
        &["/usr/lib/x86_64-linux-gnu/perl-base/auto", "/usr/lib/x86_64-linux-gnu/perl/5.36/auto"],
    ),
];

/// The six applications of B-Side's evaluation, with work for them: the program and a shell script.
pub(crate) const APPLICATIONS: &[(&str, &str)] = &[
    (
        "/usr/bin/redis-server",
        r#"
        $TRACE redis-server --port 27101 --unixsocket ./r.sock --save '3600 1' --appendonly yes \
            --logfile r.log >/dev/null &
        c="redis-cli -p 27101"
        until $c ping >/dev/null 2>&1; do sleep 0.2; done
        redis-benchmark -p 27101 -n 2000 -c 20 -q
        redis-cli -s ./r.sock eval 'return redis.call("set", "a", "b")' 0
        $c config set maxmemory 100mb; $c config rewrite; $c info all; $c memory doctor
        $c bgrewriteaof; sleep 1; $c bgsave; sleep 1; $c save; $c client list; $c slowlog get
        $c flushall async; $c lastsave; $c debug sleep 0.1; $c config set io-threads 2
        $c replicaof 127.0.0.1 27199; sleep 1; $c replicaof no one
        $c shutdown
        wait
        "#,
    ),
    (
        "/usr/sbin/nginx",
        r#"
        mkdir -p logs www; seq 100000 >www/big; echo hi >www/index.html
        cat >nginx.conf <<END
        worker_processes 2; daemon off; pid $PWD/nginx.pid; error_log $PWD/e.log;
        events { worker_connections 64; }
        http {
            access_log $PWD/a.log; sendfile on; gzip on; gzip_types text/plain; aio threads;
            client_body_temp_path $PWD/b; proxy_temp_path $PWD/p; fastcgi_temp_path $PWD/f;
            uwsgi_temp_path $PWD/u; scgi_temp_path $PWD/s; proxy_cache_path $PWD/c keys_zone=z:1m;
            server { listen 127.0.0.1:27102; root $PWD/www;
                location /proxy/ { proxy_cache z; proxy_pass http://127.0.0.1:27102/; } }
        }
END
        chmod -R 777 .
        $TRACE nginx -p $PWD -c $PWD/nginx.conf &
        u=http://127.0.0.1:27102
        until curl -sf -o /dev/null $u/; do sleep 0.2; done
        for path in / /big /none /proxy/big /proxy/index.html; do
            curl -s -o /dev/null $u$path; curl -s --compressed -o /dev/null $u$path
        done
        curl -s -o /dev/null --data-binary @www/big $u/proxy/
        curl -s -o /dev/null -r 10-20 $u/big
        kill -HUP $(cat nginx.pid); sleep 1; curl -s -o /dev/null $u/
        kill -USR1 $(cat nginx.pid); sleep 1
        kill -QUIT $(cat nginx.pid)
        wait
        "#,
    ),
    (
        "/usr/bin/memcached",
        r#"
        $TRACE memcached -u root -l 127.0.0.1 -p 27103 -U 27103 -t 4 -P $PWD/m.pid -m 16 &
        until python3 - <<'END'
import socket
s = socket.create_connection(("127.0.0.1", 27103))
f = s.makefile("rwb")
def ask(line, count=1):
    f.write(line + b"\r\n"); f.flush()
    return [f.readline() for _ in range(count)]
for n in range(200):
    ask(b"set k%d 0 0 50000\r\n" % n + b"x" * 50000)
f.write(b"get k199\r\n"); f.flush()
while f.readline() != b"END\r\n": pass
f.write(b"stats\r\n"); f.flush()
while f.readline() != b"END\r\n": pass
ask(b"incr a 1"); ask(b"delete k1"); ask(b"flush_all"); ask(b"version"); ask(b"bogus")
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.sendto(b"\0\1\0\0\0\1\0\0version\r\n", ("127.0.0.1", 27103)); u.settimeout(2)
u.recv(100)
END
        do sleep 0.2; done
        kill -TERM $(cat m.pid)
        wait
        "#,
    ),
    (
        "/usr/sbin/lighttpd",
        r#"
        mkdir -p lw; seq 100000 >lw/big; echo hi >lw/index.html
        cat >l.conf <<END
        server.document-root = "$PWD/lw"
        server.port = 27104
        server.bind = "127.0.0.1"
        server.errorlog = "$PWD/le.log"
        server.pid-file = "$PWD/l.pid"
        index-file.names = ("index.html")
        server.modules = ("mod_accesslog", "mod_dirlisting", "mod_access", "mod_redirect", "mod_proxy")
        accesslog.filename = "$PWD/la.log"
        dir-listing.activate = "enable"
END
        $TRACE lighttpd -D -f l.conf &
        u=http://127.0.0.1:27104
        until curl -sf -o /dev/null $u/; do sleep 0.2; done
        for path in / /big /none; do curl -s -o /dev/null $u$path; done
        mkdir lw/dir; curl -s -o /dev/null $u/dir/; curl -s -o /dev/null -r 10-20 $u/big
        curl -s -o /dev/null --data-binary @lw/big $u/
        kill -HUP $(cat l.pid); sleep 1; curl -s -o /dev/null $u/
        kill -INT $(cat l.pid)
        wait
        "#,
    ),
    (
        "/usr/sbin/haproxy",
        r#"
        mkdir -p hw; seq 100000 >hw/big
        (cd hw && exec python3 -m http.server -b 127.0.0.1 27106) 2>/dev/null &
        files=$!
        cat >h.cfg <<END
        global
            nbthread 2
            stats socket $PWD/h.sock level admin
            log 127.0.0.1:27199 local0
        defaults
            mode http
            timeout client 5s
            timeout server 5s
            timeout connect 5s
            log global
        frontend f
            bind 127.0.0.1:27105
            default_backend b
        backend b
            server s 127.0.0.1:27106 check inter 200
        listen stats
            bind 127.0.0.1:27107
            stats enable
            stats uri /
END
        $TRACE haproxy -W -p $PWD/h.pid -f h.cfg &
        u=http://127.0.0.1:27105
        until curl -sf -o /dev/null $u/big; do sleep 0.2; done
        for n in 1 2 3; do curl -s -o /dev/null $u/big; curl -s -o /dev/null $u/none; done
        curl -s -o /dev/null http://127.0.0.1:27107/
        kill -USR2 $(head -1 h.pid); sleep 2; curl -s -o /dev/null $u/big
        kill -TERM $(head -1 h.pid)
        kill $files
        wait
        "#,
    ),
    (
        "/usr/bin/sqlite3",
        r#"
        seq 1000 >s.csv
        cat >s.sql <<'END'
create table t(a integer primary key, b text); create index i on t(b);
begin; insert into t select value, hex(randomblob(50)) from generate_series(1, 5000); commit;
pragma mmap_size=10000000; select count(*) from t where b > 'A'; update t set b = a;
pragma journal_mode=wal; insert into t values(null, 'x'); pragma wal_checkpoint(truncate);
pragma journal_mode=truncate; insert into t values(null, 'y'); pragma journal_mode=persist;
insert into t values(null, 'z'); pragma cache_size=10; select * from t order by b limit 3;
pragma temp_store=file; create temp table u as select * from t; delete from t where a < 1000;
vacuum; attach 'other.db' as o; create table o.v as select * from t; detach o; analyze;
.import s.csv c
.backup copy.db
.output out.txt
.dump t
.output
.tables
.read /dev/null
.timer on
select datetime('now', 'localtime');
pragma integrity_check;
.cd .
.quit
END
        $TRACE sqlite3 s.db <s.sql
        "#,
    ),
];
