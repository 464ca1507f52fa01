# PostgreSQL: a new cluster, a load, a clean stop, and the data directory opened again.
set -e
PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1):$PATH
work=$(mktemp -d /tmp/postgres.XXXXXX)
export PGDATA=$work/data PGHOST=$work PGUSER=postgres
initdb --no-sync -A trust -U postgres > "$work/initdb.log" 2>&1 || cat "$work/initdb.log"
start() { pg_ctl -o "-k $work -c listen_addresses='' -c fsync=off" -w -t 120 -l "$work/log" start >/dev/null || cat "$work/log"; }
start
psql -Atc 'select 6 * 7'
createdb bench
pgbench -i -s 1 -q bench > "$work/init.log" 2>&1 || cat "$work/init.log"
pgbench -c 2 -j 2 -T "${1:-5}" bench > "$work/bench.log" 2>&1 || cat "$work/bench.log"
grep 'failed transactions' "$work/bench.log"
check() {
    psql -At bench -c 'select count(*) from pgbench_accounts' \
        -c 'select sum(abalance) = (select sum(bbalance) from pgbench_branches) from pgbench_accounts' \
        -c 'select count(*) > 0 from pgbench_history'
}
check
psql -At bench -c "create table t as select i, md5(i::text) m from generate_series(1, 5000) i" \
    -c "create index on t (m)" -c "select i from t where m = md5('4711')" \
    -c "select count(*), sum(length(m)) from t" -c "insert into nothing values (1)" 2>&1 || echo "status $?"
pg_ctl -w stop | tail -n 1
start
check
pg_ctl -w -m immediate stop | tail -n 1
start
check
pg_ctl -w stop | tail -n 1
grep -c 'automatic recovery in progress' "$work/log"
cd /; rm -rf "$work"
