# The lab's bare guest: says on its serial console that it is up, sleeps, and obeys its power button (ICH9's ACPI
# registers, as SeaBIOS places them). bareguest.py holds what `as --32` and `ld -Ttext 0x100000` make of it.
.code32
.globl _start
_start:
  cli
  mov $stack, %esp
  lgdt gdtr
  ljmp $8, $1f
1: mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  mov $idt, %edi
  mov $256, %ecx
  mov $handler, %eax
  mov %eax, %ebx
  and $0xffff, %eax
  or $0x80000, %eax
  and $0xffff0000, %ebx
  or $0x8e00, %ebx
2: stosl
  xchg %eax, %ebx
  stosl
  xchg %eax, %ebx
  loop 2b
  lidt idtr
  mov $line, %esi
3: lodsb
  test %al, %al
  jz 5f
  mov %al, %ah
  mov $0x3fd, %edx
4: in %dx, %al
  test $0x20, %al
  jz 4b
  mov $0x3f8, %edx
  mov %ah, %al
  out %al, %dx
  jmp 3b
5: mov $0x602, %edx
  mov $0x100, %eax
  out %ax, %dx
6: sti
  hlt
  cli
  mov $0x600, %edx
  in %dx, %ax
  test $1, %ah
  jz 6b
  mov $0x604, %edx
  mov $0x2000, %eax
  out %ax, %dx
7: hlt
  jmp 7b
handler:
  push %eax
  mov $0x20, %al
  out %al, $0xa0
  out %al, $0x20
  pop %eax
  iret
  .balign 8
gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr: .word 23
  .long gdt
idtr: .word 2047
  .long idt
line: .asciz "REKINDLE-GUEST-UP\n"
.equ idt, 0x110000
.equ stack, 0x120000
