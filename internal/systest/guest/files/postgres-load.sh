#!/bin/busybox sh
# The load of the guest with PostgreSQL. It speaks on the console as the writer
# does: ACK n once the row n is committed, VERIFY with what was found at the start.
#   verify  start the database, which recovers, check all of it, count the rows
#   write   let pgbench run, and commit one numbered row after the other
#   stop    shut the database down cleanly
bin=/usr/lib/postgresql/15/bin
as() { HOME=/data PGHOST=/run PGDATABASE=shop /usr/bin/setpriv --reuid=999 --regid=999 --clear-groups "$@"; }
case $1 in
verify)
	chmod 1777 /run /tmp /dev/shm
	as $bin/pg_ctl -D /data/pg -l /data/pg.log -w -t 120 start >/dev/null || { echo "VERIFY bad: PostgreSQL does not start"; tail -n 30 /data/pg.log; exit 1; }
	bad=0
	as $bin/pg_amcheck --all --heapallindexed --parent-check >/tmp/amcheck 2>&1 || { bad=1; cat /tmp/amcheck; }
	[ "$(as $bin/psql -qAtc 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers) AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches) AND (SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)')" = t ] || bad=$((bad + 2))
	echo "VERIFY postgres $(as $bin/psql -qAtF ' ' -c "SELECT 'last=' || coalesce(max(n), 0), 'count=' || count(*), 'gaps=' || coalesce(max(n), 0) - count(*) FROM acked") bad=$bad"
	;;
write)
	as $bin/pgbench -n -c 2 -T 1000000 >/tmp/pgbench 2>&1 &
	next=$(($(as $bin/psql -qAtc 'SELECT coalesce(max(n), 0) FROM acked') + 1))
	seq $next 100000000 | sed 's/.*/INSERT INTO acked VALUES (&) RETURNING n;/' | as $bin/psql -qAt | while read -r n; do echo "ACK $n"; done
	echo "LOAD-ENDED"
	;;
stop)
	as $bin/pg_ctl -D /data/pg -m fast -w stop >/dev/null
	;;
esac
