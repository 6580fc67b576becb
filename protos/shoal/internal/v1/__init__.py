"""Messages and stubs of the internal services, made from the .proto files beside this one."""
