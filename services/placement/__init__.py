"""Plans where orphaned VMs start again, and keeps those in mind that found no room."""
