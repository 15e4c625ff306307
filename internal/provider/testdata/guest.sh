# Makes of a new network, mount and process namespace what looks like a guest with
# one card, addressed by what the first argument says, runs the rest as commands,
# each with the script of addresses as standard input if it begins with "sh -s",
# and prints what the card has after each. The second argument is the script.
set -eu
by=$1 script=$2
shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/systemd /run/lock /run/etc/systemd /run/etc/network/interfaces.d /run/network
echo "nameserver 192.168.7.2" >/run/etc/resolv.conf
touch "$(readlink -f /etc/resolv.conf)" 2>/dev/null || true
mount --bind /run/etc/resolv.conf /etc/resolv.conf
[ ! -d /etc/systemd/network ] || mount --bind /run/etc/systemd /etc/systemd/network
[ ! -d /etc/network ] || mount --bind /run/etc/network /etc/network
mount -t proc proc /proc
mount -o ro -t sysfs sysfs /sys
ip link set lo up
ip link add eth0 type veth peer name peer0
ip link set eth0 address 52:54:00:12:34:56
ip link set peer0 up
case $by in
nothing)
	ip link set eth0 up
	ip addr add 192.168.7.5/24 dev eth0
	;;
systemd-networkd)
	printf '[Match]\nName=eth0\n[Network]\nAddress=192.168.7.5/24\nGateway=192.168.7.1\n' >/etc/systemd/network/10-own.network
	dbus-daemon --system --fork --nopidfile
	/lib/systemd/systemd-networkd >/run/networkd.log 2>&1 &
	until ip addr show dev eth0 | grep -q 192.168.7.5; do sleep 0.1; done
	;;
ifupdown)
	printf 'iface eth0 inet static\n\taddress 192.168.7.5/24\n\tgateway 192.168.7.1\n' >/etc/network/interfaces
	ifup eth0
	;;
esac
for command in "$@"; do
	if out=$($command <"$script" 2>&1); then rc=0; else rc=$?; fi
	for try in 1 2 3 4 5 6 7 8 9 10; do
		a=$(ip -o addr show dev eth0 scope global | awk '{print $4}' | sort | tr '\n' ' ')
		[ -z "$a" ] || break
		sleep 0.3
	done
	echo "$rc|$(echo "$out" | tr '\n' ';')|$a|$(ip route show default | awk '{print $3}')|$(awk '/^nameserver/ {print $2}' /etc/resolv.conf | tr '\n' ' ')|$(find /etc/systemd/network /etc/network -name '*holdfast*' 2>/dev/null | wc -l)"
done
