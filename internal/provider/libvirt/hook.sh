#!/bin/sh
# Holdfast's hook of libvirt: it refuses to start a machine that is guarded,
# because its item works at another site. libvirt gives the machine's definition
# on standard input; a guard is an element in its metadata.
# Install as /etc/libvirt/hooks/qemu.d/holdfast, mode 0755, and restart libvirt.
case "$2/$3" in
prepare/begin | migrate/begin | restore/begin) ;;
*) exit 0 ;;
esac
if grep -q 'https://holdfast-dr.github.io/xmlns/guard'; then
	echo "Holdfast: machine $1 is guarded: its item works at another site. See virsh metadata --config $1 https://holdfast-dr.github.io/xmlns/guard" >&2
	exit 1
fi
exit 0
