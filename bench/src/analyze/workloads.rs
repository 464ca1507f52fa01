//! What the surveyed programs are made to do. Each line or script runs in a folder that holds `t`, a
//! short text; `$TRACE` stands for strace.

/// A command that is traced as it is: program and arguments, in the shell's notation.
pub(crate) const COMMANDS: &[&str] = &[
    "/bin/ls -la /usr",
    "/bin/cat t",
    "/usr/bin/sort t",
    "/usr/bin/grep -r b t",
    "/usr/bin/sed s/a/b/ t",
    "/usr/bin/mawk '{print $1}' t",
    "/usr/bin/gawk '{print $1}' t",
    "/bin/tar cf t.tar t",
    "/usr/bin/gzip -kf t",
    "/usr/bin/xz -kf t",
    "/usr/bin/bzip2 -kf t",
    "/usr/bin/diff t /etc/passwd",
    "/usr/bin/file /bin/ls",
    "/usr/bin/find /etc -name passwd",
    "/usr/bin/wc t",
    "/usr/bin/head t",
    "/usr/bin/tail t",
    "/usr/bin/tr a b <t",
    "/usr/bin/date",
    "/usr/bin/id",
    "/usr/bin/stat t",
    "/usr/bin/du /etc",
    "/bin/df",
    "/bin/cp t t2",
    "/bin/mv t2 t3",
    "/bin/mkdir -p d",
    "/usr/bin/touch x",
    "/bin/rm -f t3",
    "/bin/ln -sf a b",
    "/usr/bin/md5sum t",
    "/usr/bin/sha256sum t",
    "/usr/bin/od t",
    "/usr/bin/seq 1000",
    "/bin/uname -a",
    "/bin/busybox ls -la /",
    "/bin/busybox find /etc -name passwd",
    "/bin/busybox sh -c 'echo hi'",
    "/usr/bin/lua5.4 -e 'print(1)'",
    "/usr/bin/perl -e 'print 1'",
    "/usr/bin/python3 -c 'import socket, threading, os, json; t = threading.Thread(target=print); \
     t.start(); t.join(); os.listdir(\".\")'",
    "/usr/bin/bc /dev/null",
    "/usr/bin/dc -e 1p",
    "/usr/bin/jq -n 1",
    "/usr/bin/openssl version",
    "/usr/bin/openssl speed -seconds 1 -bytes 16 md5",
    "/bin/dash -c 'echo hi'",
    "/bin/bash -c 'for i in 1 2; do echo $i; done'",
    "/usr/bin/node -e 'console.log(1)'",
    "/usr/bin/git --version",
    "/usr/bin/curl -s http://127.0.0.1:1/",
    "/usr/bin/objdump -d /bin/true",
    "/usr/bin/gdb --version",
    "/usr/bin/make --version",
    "/usr/bin/gpg --version",
    "/usr/bin/ssh -V",
    "/usr/bin/vim.basic --version",
    "/usr/bin/nproc",
    "/usr/bin/env",
    "/usr/bin/ps aux",
    "/usr/bin/free",
    "/usr/bin/getent passwd root",
    "/usr/bin/whoami",
    "/bin/hostname",
    "/usr/bin/cmake --version",
    "/sbin/ldconfig -p",
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
