#!/bin/busybox sh
# The load of the guest with PostgreSQL. It speaks on the console as the writer
# does: ACK n once the row n is committed, VERIFY with what was found at the start.
#   verify  start the database, which recovers, check all of it, count the rows
#   write   let pgbench run, and commit one numbered row after the other
#   stop    shut the database down cleanly
# With the option pg=ROLE, given as guest-init has it, the database is one of several,
# which are made of one tree:
#   pg=primary:CARD,ADDRESS/LEN            rows are committed here, nothing else is done
#   pg=replica:PRIMARY:CARD,ADDRESS/LEN…   a streaming replica of it
#   pg=reader:REPLICA:CARD,ADDRESS/LEN     no database: it writes the highest row that the
#                                          replica shows to the first sector of /dev/vdb
bin=/usr/lib/postgresql/15/bin
as() { HOME=/data PGHOST=/run PGDATABASE=shop /usr/bin/setpriv --reuid=999 --regid=999 --clear-groups "$@"; }
role= peer=
for o in $(cat /proc/cmdline /sys/firmware/qemu_fw_cfg/by_name/opt/org.holdfast.guest/raw 2>/dev/null | tr '\0' ' '); do
	case $o in pg=*) role=${o#pg=} ;; esac
done
join() { # the networks that the role names
	rest=$(echo "$role" | tr : ' ') role=${role%%:*}
	set -- $rest
	shift
	case $role in replica | reader) peer=$1; shift ;; esac
	for card in "$@"; do
		ip addr add "${card#*,}" dev "${card%%,*}" 2>/dev/null
		ip link set "${card%%,*}" up
	done
}
[ -z "$role" ] || join
case $1$role in
verifyprimary | verifyreplica)
	chmod 1777 /run /tmp /dev/shm
	if ! grep -q 10.9.0.0 /data/pg/pg_hba.conf; then
		echo "listen_addresses = '*'" >>/data/pg/postgresql.conf
		echo "host all,replication all 10.9.0.0/16 trust" >>/data/pg/pg_hba.conf
		[ $role = primary ] || { echo "primary_conninfo = 'host=$peer user=postgres'" >>/data/pg/postgresql.conf; as touch /data/pg/standby.signal; }
		sync # what is appended to a block in use may be zeros after a crash
	fi
	as $bin/pg_ctl -D /data/pg -l /data/pg.log -w -t 120 start >/dev/null || { echo "PostgreSQL does not start"; tail -n 30 /data/pg.log; exit 1; }
	;;
verifyreader | writereplica | stopreader) ;;
writereader)
	while :; do
		echo 'SELECT max(n) FROM acked \watch 0.1' | as $bin/psql -h $peer -U postgres -qAt 2>/dev/null | while read -r n; do
			case $n in '' | *[!0-9]*) continue ;; esac
			printf '%-511s\n' "$n" | dd of=/dev/vdb bs=512 count=1 conv=notrunc,fsync 2>/dev/null && echo "READ $n"
		done
		sleep 1
	done
	;;
verify)
	chmod 1777 /run /tmp /dev/shm
	as $bin/pg_ctl -D /data/pg -l /data/pg.log -w -t 120 start >/dev/null || { echo "VERIFY bad: PostgreSQL does not start"; tail -n 30 /data/pg.log; exit 1; }
	bad=0
	as $bin/pg_amcheck --all --heapallindexed --parent-check >/tmp/amcheck 2>&1 || { bad=1; cat /tmp/amcheck; }
	[ "$(as $bin/psql -qAtc 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers) AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches) AND (SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)')" = t ] || bad=$((bad + 2))
	echo "VERIFY postgres $(as $bin/psql -qAtF ' ' -c "SELECT 'last=' || coalesce(max(n), 0), 'count=' || count(*), 'gaps=' || coalesce(max(n), 0) - count(*) FROM acked") bad=$bad"
	;;
write | writeprimary)
	[ -n "$role" ] || as $bin/pgbench -n -c 2 -T 1000000 >/tmp/pgbench 2>&1 &
	next=$(($(as $bin/psql -qAtc 'SELECT coalesce(max(n), 0) FROM acked') + 1))
	seq $next 100000000 | sed 's/.*/INSERT INTO acked VALUES (&) RETURNING n;/' | as $bin/psql -qAt | while read -r n; do echo "ACK $n"; done
	echo "LOAD-ENDED"
	;;
stop*)
	as $bin/pg_ctl -D /data/pg -m fast -w stop >/dev/null
	;;
esac
