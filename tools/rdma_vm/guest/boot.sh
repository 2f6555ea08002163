#!/bin/bash
# The guest's process 1 after init.sh: brings up the network and the RDMA devices, runs /job/command.sh, leaves its
# status in /job/status, and turns the machine off. /job is a folder of the machine outside.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb
mount -t cgroup2 cgroup /sys/fs/cgroup
if [ -e /job/with-results ]; then
    mkdir -p /results
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none results /results
fi
hostname rdma-vm
ip link set lo up
ulimit -l unlimited
ulimit -n 65536

# Two devices in one machine, rxe0 with 10.99.0.1 and rxe1 with 10.99.0.2, at the ends of one virtual cable. Both
# addresses are local, and the kernel would not send over the cable what is for itself; so the rules below come before
# the table of local addresses for what goes from one to the other.
pair() {
    ip link add cable0 type veth peer name cable1
    ip addr add 10.99.0.1/24 dev cable0
    ip addr add 10.99.0.2/24 dev cable1
    ip link set cable0 mtu 4200 up
    ip link set cable1 mtu 4200 up
    sysctl -qw net.ipv4.conf.all.arp_ignore=1
    for name in all cable0 cable1; do
        sysctl -qw net.ipv4.conf.$name.accept_local=1 net.ipv4.conf.$name.rp_filter=0
    done
    ip route add 10.99.0.2 dev cable0 src 10.99.0.1 table 101
    ip route add 10.99.0.1 dev cable1 src 10.99.0.2 table 102
    ip rule add pref 10 iif cable0 lookup local
    ip rule add pref 11 iif cable1 lookup local
    ip rule add pref 20 from 10.99.0.1 to 10.99.0.2 lookup 101
    ip rule add pref 21 from 10.99.0.2 to 10.99.0.1 lookup 102
    ip rule add pref 200 lookup local
    ip rule del pref 0
    rdma link add rxe0 type rxe netdev cable0
    rdma link add rxe1 type rxe netdev cable1
}

# One of two guests that are joined by an emulated cable: rxe0 with 10.96.0.1 or 10.96.0.2.
node() {
    modprobe virtio_net
    wire=$(basename "$(dirname "$(grep -l 52:54:00:00:00:0 /sys/class/net/*/address)")")
    ip addr add "10.96.0.$1/24" dev "$wire"
    ip link set "$wire" mtu 4200 up
    rdma link add rxe0 type rxe netdev "$wire"
}

if [ -e /job/node ]; then node "$(cat /job/node)"; else pair; fi

exec 3<>/dev/hvc0
stty raw -echo <&3
bash /job/command.sh </dev/null >&3 2>&1 3>&-
echo $? >/job/status
sync
exec busybox poweroff -f
