# Gives network cards of this machine other addresses, or takes that back. What
# the machine's own configuration says stays as it is: what is added stands before
# it, lasts over restarts, and is called holdfast. Run by Holdfast through the guest
# agent, as
#
#	sh -s -- set CARD dhcp|static ADDRESSES GATEWAYS DNS [CARD ...]
#	sh -s -- restore
#
# where CARD is a MAC address and lists have commas, or are a dash if empty. It
# ends with 0 if all was done, and says on each line which card was given its
# addresses by what.
set -u
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
networkd=/etc/systemd/network
interfaces=/etc/network/interfaces
ours=/etc/network/interfaces.d/holdfast
map=/etc/network/holdfast-map
resolv=/etc/resolv.conf

fail() { echo "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }
words() { [ "$1" = - ] || echo "$1" | tr ',' ' '; }
family() { case $1 in *:*) echo 6 ;; *) echo 4 ;; esac; }
only() { for w in $2; do [ "$(family "$w")" != "$1" ] || echo "$w"; done; }
listed() { tr -s '\n ' ',' | sed 's/,$//'; }

# card names the card with a MAC address, or what it is part of.
card() {
	found=
	for d in /sys/class/net/*; do
		[ "$(cat "$d/address" 2>/dev/null)" = "$1" ] || continue
		if [ -z "$found" ] || [ -e "$d/device" ]; then found=$d; fi
	done
	[ -n "$found" ] || fail "no network card has the address $1"
	if [ -e "$found/master" ]; then found=/sys/class/net/$(basename "$(readlink "$found/master")"); fi
	basename "$found"
}

# manager names what gives a card its addresses.
manager() {
	if has nmcli && [ "$(nmcli -t -f RUNNING general 2>/dev/null)" = running ] && ! nmcli -g GENERAL.STATE device show "$1" 2>/dev/null | grep -q unmanaged; then
		echo NetworkManager
	elif has ifquery && { [ -e "$ours" ] || ifquery "$1" >/dev/null 2>&1; }; then
		echo ifupdown
	elif has networkctl && networkctl list >/dev/null 2>&1; then
		echo systemd-networkd
	else
		echo nothing
	fi
}

names() { # DNS: into resolv.conf, where nobody else writes it
	[ -n "$1" ] || return 0
	[ -e "$resolv.holdfast" ] || cat "$resolv" 2>/dev/null >"$resolv.holdfast"
	{
		grep -E '^(search|domain|options)' "$resolv.holdfast"
		for n in $1; do echo "nameserver $n"; done
	} >"$resolv.new"
	if ! cat "$resolv.new" 2>/dev/null >"$resolv"; then echo "DNS servers are not set: $resolv cannot be written"; fi
	rm -f "$resolv.new"
}

set_NetworkManager() {
	nmcli -t connection delete "holdfast-$1" >/dev/null 2>&1
	old=$(nmcli -g GENERAL.CONNECTION device show "$1" 2>/dev/null)
	if [ -n "$old" ]; then nmcli connection clone "$old" "holdfast-$1" >/dev/null
	else nmcli connection add type ethernet ifname "$1" con-name "holdfast-$1" >/dev/null; fi || fail "$1: NetworkManager takes no connection"
	for f in 4 6; do
		a=$(only $f "$3" | listed) g=$(only $f "$4" | listed) n=$(only $f "$5" | listed)
		m=auto; [ -z "$a" ] || m=manual
		[ "$2$f" != static4 ] || [ -n "$a" ] || m=disabled
		nmcli connection modify "holdfast-$1" "ipv$f.method" auto "ipv$f.gateway" "" "ipv$f.addresses" "" "ipv$f.routes" "" "ipv$f.dns" "" &&
			nmcli connection modify "holdfast-$1" "ipv$f.addresses" "$a" "ipv$f.gateway" "$g" "ipv$f.dns" "$n" "ipv$f.method" "$m" || fail "$1: NetworkManager takes no addresses"
	done
	nmcli connection modify "holdfast-$1" connection.autoconnect yes connection.autoconnect-priority 999 connection.interface-name "$1"
	nmcli --wait 60 connection up "holdfast-$1" >/dev/null
}

set_systemd_networkd() {
	mkdir -p $networkd
	{
		printf '[Match]\nName=%s\n\n[Network]\n' "$1"
		if [ "$2" = dhcp ]; then echo DHCP=yes; else echo DHCP=no; fi
		for a in $3; do echo "Address=$a"; done
		for g in $4; do echo "Gateway=$g"; done
		for n in $5; do echo "DNS=$n"; done
	} >"$networkd/00-holdfast-$1.network"
	case $(readlink -f $resolv) in /run/systemd/*) ;; *) names "$5" ;; esac
	networkctl reload && networkctl reconfigure "$1"
}

set_ifupdown() {
	ifdown --force "$1" >/dev/null 2>&1
	! has ip || ip addr flush dev "$1" scope global
	mkdir -p "$(dirname $ours)" && touch $ours
	printf '#!/bin/sh\necho "holdfast-$1"\n' >$map && chmod 755 $map
	drop_ifupdown "$1"
	{
		printf '# %s\nmapping %s\n\tscript %s\n' "$1" "$1" $map
		for f in 4 6; do
			inet=inet; [ $f = 4 ] || inet=inet6
			g=$(only $f "$4" | head -n 1)
			for a in $(only $f "$3"); do
				printf 'iface holdfast-%s %s static\n\taddress %s\n' "$1" $inet "$a"
				[ -z "$g" ] || printf '\tgateway %s\n' "$g"
				g=
				[ -z "$5" ] || printf '\tdns-nameservers %s\n' "$5"
			done
		done
		[ "$2" != dhcp ] || printf 'iface holdfast-%s inet dhcp\n' "$1"
		echo "# end $1"
	} >>$ours
	ifquery "holdfast-$1" >/dev/null 2>&1 || echo "source $ours # holdfast" >>$interfaces
	has resolvconf || names "$5"
	ifup --force "$1" >/dev/null
}

drop_ifupdown() { # the part of a card
	sed -i "/^# $1\$/,/^# end $1\$/d" $ours
}

set_nothing() {
	has ip || fail "$1: there is no ip command, and nothing that gives cards their addresses"
	ip link set "$1" up
	if [ "$2" = dhcp ]; then
		if has udhcpc; then udhcpc -n -q -i "$1" >/dev/null; elif has dhclient; then dhclient -1 "$1" >/dev/null; else fail "$1: there is no DHCP client"; fi || return 1
	else
		ip addr flush dev "$1" scope global
		for a in $3; do ip addr add "$a" dev "$1" || return 1; done
		for g in $4; do ip -"$(family "$g")" route replace default via "$g" dev "$1" || return 1; done
	fi
	names "$5"
}

# there waits until a card has its addresses and gateways.
there() {
	has ip || return 0
	for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
		missing=
		for a in $2; do ip addr show dev "$1" | grep -qF " $a " || missing="$missing $a"; done
		for g in $3; do ip -"$(family "$g")" route show default dev "$1" | grep -qF "via $g " || missing="$missing $g"; done
		[ -n "$missing" ] || return 0
		sleep 1
	done
	echo "$1 was not given$missing" >&2
	return 1
}

restore() {
	if has nmcli; then
		for c in $(nmcli -g NAME connection show 2>/dev/null | grep '^holdfast-'); do
			nmcli connection delete "$c" >/dev/null && nmcli --wait 60 device connect "${c#holdfast-}" >/dev/null || failed=yes
			echo "${c#holdfast-}: NetworkManager has its own configuration again"
		done
	fi
	for f in $networkd/00-holdfast-*.network; do
		[ -e "$f" ] || continue
		c=${f##*/00-holdfast-} c=${c%.network}
		rm -f "$f"
		if networkctl reload && networkctl reconfigure "$c"; then :; else failed=yes; fi
		echo "$c: systemd-networkd has its own configuration again"
	done
	if [ -e $ours ]; then
		cards=$(sed -n 's/^# end //p' $ours)
		for c in $cards; do ifdown --force "$c" >/dev/null 2>&1; done
		sed -i '/# holdfast$/d' $interfaces
		rm -f $ours $map
		for c in $cards; do
			! has ip || ip addr flush dev "$c" scope global
			ifup --force "$c" >/dev/null || failed=yes
			echo "$c: ifupdown has its own configuration again"
		done
	fi
	if [ -e "$resolv.holdfast" ]; then
		cat "$resolv.holdfast" 2>/dev/null >"$resolv"
		rm -f "$resolv.holdfast"
	fi
}

failed=
if [ "$1" = restore ]; then
	restore
	[ -z "$failed" ]
	exit
fi
shift
while [ $# -ge 5 ]; do
	c=$(card "$1") || exit 1
	by=$(manager "$c")
	addresses=$(words "$3")
	set_$(echo "$by" | tr - _) "$c" "$2" "$addresses" "$(words "$4")" "$(words "$5")" && there "$c" "$addresses" "$(words "$4")" || {
		restore
		fail "$c: $by could not give it its addresses; it has its own again"
	}
	if [ "$by" = nothing ]; then echo "$c: it has its addresses until it is restarted, for nothing was found that would give them to it then"; else echo "$c: $by"; fi
	shift 5
done
