#!/bin/busybox sh
# First program of the test guest: load the virtio drivers, mount the root
# partition, go on there. @MODULES@ is replaced when the guest is built.
b=/bin/busybox
$b mkdir -p /proc /sys /dev /r
$b mount -t proc p /proc
$b mount -t sysfs s /sys
$b mount -t devtmpfs d /dev
for m in @MODULES@; do $b insmod /$m.ko; done
i=0
while [ ! -b /dev/vda1 ] && [ $i -lt 200 ]; do $b usleep 25000; i=$((i + 1)); done
$b mount -t ext4 -o noatime /dev/vda1 /r || { echo ROOT-MOUNT-FAILED; $b poweroff -f; }
for d in proc sys dev; do $b mount --move /$d /r/$d; done
exec $b switch_root /r /guest-init
