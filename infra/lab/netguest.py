"""What a guest that is asked over the network has more than others: a network card, an address, and a server that begins a
while after the guest is up. It has the same kernel, and may have an agent beside.
"""

from infra.lab import initramfs

MODULES = ("virtio_net",)

# The address and what to serve stand on the kernel's command line, which goes with the definition from host to host.
START = r"""read -r line < /proc/cmdline
for word in $line; do
  case $word in
    rekindle.address=*) address=${word#*=} ;;
    rekindle.serve=*) serve=${word#*=} ;;
    rekindle.after=*) after=${word#*=} ;;
  esac
done
$b ip link set lo up
$b ip addr add $address dev eth0
$b ip link set eth0 up
# As many systems do: switches and neighbours learn where it is now.
$b arping -q -U -c 3 -I eth0 ${address%/*} > /dev/null 2>&1 &
{
  page=/www/${serve#*/}
  case $page in */) page=${page}index.html ;; esac
  $b mkdir -p ${page%/*}
  echo ready > $page
  $b sleep $after
  exec $b httpd -f -p ${serve%%/*} -h /www
} > /dev/null 2>&1 &
"""
INIT = initramfs.init(START)


def command_line(address: str, serves: str, after_s: float) -> str:
    """Words for the guest; `address` with its prefix, `serves` a port and the path of a page, as 8080/health."""
    return f"rekindle.address={address} rekindle.serve={serves} rekindle.after={after_s:g}"


_NIC = """    <interface type='network'>
{mac}      <source network='{network}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
"""


def interfaces(networks: tuple[str, ...], mac: str) -> str:
    """What the definition of a VM has besides. The first has this hardware address; that of each other libvirt chooses."""
    macs = [f"      <mac address='{mac}'/>\n" if mac else "", *("" for _ in networks[1:])]
    return "".join(_NIC.format(mac=own, network=name) for own, name in zip(macs, networks, strict=False))
