#!/bin/bash
# Makes a small image with this machine's own Python, for tests where no container registry can be reached:
#
#   tests/support/docker/base_image.sh tandem-python:local
#
# Takes the Python of `python3` (3.11 or newer, x86-64, glibc), the shared libraries that it needs and a few commands.
# The image also holds this machine's certificate authorities, so that pip works in it as it does here: don't push it.
set -euo pipefail

tag=${1:?usage: base_image.sh TAG}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
prefix=$(python3 -c 'import sys; print(sys.base_prefix)')
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
libs=$root/lib/x86_64-linux-gnu
commands="sh dash bash true false cat ls cp mv rm mkdir rmdir ln chmod chown sleep echo env id grep sed touch head tail
  tar gzip kill hostname mktemp uname df lscpu"

mkdir -p "$root"/{bin,usr/bin,usr/lib,usr/local/bin,usr/local/lib,lib64,etc/ssl/certs,tmp,var/tmp,proc,sys,dev,run} "$libs"
chmod 755 "$root"
chmod 1777 "$root/tmp" "$root/var/tmp"

# Python, its standard library and pip.
tar -C "$prefix/lib" -c --exclude=test --exclude=tests --exclude=tkinter --exclude=idlelib --exclude=turtledemo \
  --exclude=__pycache__ --exclude='config-*' --exclude='site-packages/*' "python$version" | tar -C "$root/usr/local/lib" -x
mkdir -p "$root/usr/local/lib/python$version/site-packages"
cp -a "$prefix/lib/python$version"/site-packages/pip* "$root/usr/local/lib/python$version/site-packages/"
cp "$prefix/bin/python$version" "$root/usr/local/bin/"
if [ -e "$prefix/lib/libpython$version.so.1.0" ]; then cp "$prefix/lib/libpython$version.so.1.0" "$root/usr/local/lib/"; fi
rm -f "$root/usr/local/lib/python$version"/lib-dynload/_tkinter*
ln -s "python$version" "$root/usr/local/bin/python3"
ln -s "python$version" "$root/usr/local/bin/python"
printf '#!/bin/sh\nexec /usr/local/bin/python -m pip "$@"\n' >"$root/usr/local/bin/pip"
chmod 755 "$root/usr/local/bin/pip"

# A few commands, and every library that all of these load.
for name in $commands; do
  if found=$(type -P "$name"); then cp -L "$found" "$root/bin/"; fi
done
for file in "$root/usr/local/bin/python$version" "$root/usr/local/lib/python$version"/lib-dynload/*.so "$root"/bin/*; do
  LD_LIBRARY_PATH=$prefix/lib ldd "$file" 2>/dev/null || true
done | awk '/=> \// {print $3}' | grep -v libpython | sort -u | while read -r file; do cp -nL "$file" "$libs/"; done
for name in libnss_dns.so.2 libnss_files.so.2 libgcc_s.so.1 libstdc++.so.6 libpthread.so.0 libdl.so.2 librt.so.1 libmvec.so.1 \
  libutil.so.1 libresolv.so.2 libanl.so.1; do
  for folder in /lib /usr/lib; do
    if [ -e "$folder/x86_64-linux-gnu/$name" ]; then cp -nL "$folder/x86_64-linux-gnu/$name" "$libs/"; fi
  done
done
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
strip --strip-unneeded "$root"/usr/local/lib/libpython* "$root/usr/local/lib/python$version"/lib-dynload/*.so 2>/dev/null || true

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp -L /etc/os-release "$root/etc/"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
printf '/usr/local/lib\n/lib/x86_64-linux-gnu\n' >"$root/etc/ld.so.conf"
ldconfig -r "$root"

tar -C "$root" -c . | docker import \
  -c 'CMD ["python3"]' \
  -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
  -c 'ENV LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt' \
  - "$tag" >/dev/null
