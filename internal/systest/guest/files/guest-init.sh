#!/bin/busybox sh
# The test guest's only service. It reports on the serial console and takes
# options, words with a space between, from the kernel command line, from
# QEMU's -fw_cfg name=opt/org.holdfast.guest,string=... and from /data/options:
#   nowriter      do not write records
#   rate=N        records a second, 0 for as many as the disk takes
#   exec=A:B:C    run "writer A B C" once the guest is up, and print what it says
#   poweroff      switch off when exec is done
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec >/dev/ttyS0 2>&1 </dev/ttyS0
stty -F /dev/ttyS0 raw -echo 2>/dev/null
mount -t tmpfs t /run
mount -t tmpfs t /tmp
mkdir -p /dev/shm /dev/pts
mount -t tmpfs t /dev/shm
mount -t devpts p /dev/pts
mount -o remount,rw,noatime /
ip link set lo up
# The load: records by the writer, or what the disk was built with.
load=/load
[ -x $load ] || load=stopped_writer
stopped_writer() { if [ "$1" = stop ]; then killall -9 writer; else writer "$@"; fi; }
up() { cut -d' ' -f1 /proc/uptime; }
options="$(cat /proc/cmdline /sys/firmware/qemu_fw_cfg/by_name/opt/org.holdfast.guest/raw /data/options 2>/dev/null | tr '\n\0' '  ')"
echo "GUEST-UP $(up)"
rate=100 nowriter= run= off=
for o in $options; do
	case $o in
	nowriter) nowriter=1 ;;
	rate=*) rate=${o#rate=} ;;
	exec=*) run=$(echo "${o#exec=}"  | tr : ' ') ;;
	poweroff) off=1 ;;
	esac
done
for p in /sys/class/virtio-ports/*; do
	[ "$(cat $p/name 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
	# Hooks are run only with -F, in the guest as elsewhere.
	mkdir -p /var/run
	qemu-ga -m virtio-serial -p /dev/${p##*/} -f /run/qga.pid -t /run -l /run/qga.log -F/etc/qemu/fsfreeze-hook &
done
# The power button.
for e in /dev/input/event*; do
	[ -c "$e" ] || continue
	{ dd if=$e of=/dev/null bs=24 count=1 2>/dev/null && { echo GUEST-OFF; $load stop; sync; mount -o remount,ro /; poweroff -f; }; } &
done
$load verify
[ -n "$nowriter" ] || $load write -rate "$rate" &
echo "GUEST-READY $(up)"
if [ -n "$run" ]; then
	writer $run
	echo "GUEST-DONE $?"
	[ -z "$off" ] || { sync; poweroff -f; }
fi
while :; do sleep 3600; done
