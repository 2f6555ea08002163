#!/bin/busybox sh
# The first program of the guest. It mounts the root of the machine outside, read-only, below the layer with rdma-core,
# below a tmpfs that takes all writes, and goes there. The layer is a share of its own, as overlayfs refuses a lower
# folder inside another. Modules are those that tools/rdma_vm/initrd.py packed.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in @MODULES@; do $b insmod "/$module"; done

share() { # tag, where, how
    $b mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"
}
share root /host ro,cache=loose
share layer /layer ro,cache=loose
$b mount -t tmpfs -o size=90% rw /rw
$b mkdir /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/layer:/host,upperdir=/rw/upper,workdir=/rw/work overlay /newroot

for folder in proc sys dev; do $b mount --move "/$folder" "/newroot/$folder"; done
$b mkdir -p /newroot/dev/shm /newroot/dev/pts /newroot/run /newroot/tmp /newroot/job
$b mount -t tmpfs -o mode=1777 shm /newroot/dev/shm
$b mount -t devpts pts /newroot/dev/pts
$b mount -t tmpfs run /newroot/run
share job /newroot/job cache=none
exec $b switch_root /newroot /bin/bash /job/boot.sh
